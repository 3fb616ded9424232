"""Work on all of torch's threads for kernels that release the interpreter lock.

Where torch brings GNU's OpenMP, kernels run on the very threads that torch's own operators run on:
these spin for milliseconds after an operator, and other threads would have to share the cores with
them. A process forked after an OpenMP region cannot enter another one, and data loaders fork; so
there, and with other builds of torch, threads are those of a pool, made when first needed and made
anew in a forked child.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["parallel_for"]

CHUNKS_PER_THREAD = 4
CACHE_LINE = 64
MOST_KEPT = 2**24
"""Most bytes of scratch memory that are kept between calls, a thread."""

_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_memory: list[torch.Tensor] = []
"""Scratch memory that is not in use."""
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _find_openmp() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the library that torch has loaded."""
    if sys.platform != "linux":
        return None
    for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        try:
            run = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        run.argtypes, run.restype = [_Work, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return run
    return None


_openmp = _find_openmp()


def parallel_for(
    kernel: Callable[..., None], tasks: int, *args: Any, min_chunk: int = 1, scratch: int = 0
) -> None:
    """Calls ``kernel(begin, end, *args)`` on ranges that together are ``range(tasks)``.

    The ranges are a few for each of ``torch.get_num_threads()`` threads, which take them as they
    get free; which thread takes which is left open, so a kernel must not let results depend on it.

    Args:
        kernel: Function that releases the interpreter lock (``numba.njit(nogil=True)``).
        tasks: Number of tasks; none is fine.
        *args: Further arguments.
        min_chunk: Fewest tasks worth a call of their own.
        scratch: Bytes of memory for each call alone, the address of which then comes before
            ``args``. It is kept for later calls, holds what the last one left, and starts a cache
            line.
    """
    if tasks == 0:
        return
    if scratch:
        kernel = _with_scratch(kernel, scratch)
    threads = min(torch.get_num_threads(), (tasks + min_chunk - 1) // min_chunk)
    if threads == 1:
        kernel(0, tasks, *args)
        return
    chunk = max(-(-tasks // (threads * CHUNKS_PER_THREAD)), min_chunk)
    starts = iter(range(0, tasks, chunk))
    errors: list[BaseException] = []

    def work(_: Any = None) -> None:
        try:
            for start in starts:
                kernel(start, min(start + chunk, tasks), *args)
        except BaseException as error:
            errors.append(error)

    # Nobody may return while a thread still writes to the caller's tensors.
    if _openmp is not None:
        _openmp(_Work(work), None, threads, 0)
    else:
        pool = _get_pool(threads - 1)
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            # Those that have not begun have nothing left to do.
            if not other.cancel():
                other.result()
    if errors:
        raise errors[0]


def _with_scratch(kernel: Callable[..., None], size: int) -> Callable[..., None]:
    def call(begin: int, end: int, *args: Any) -> None:
        memory = _take_memory(size + CACHE_LINE)
        try:
            kernel(begin, end, -(-memory.data_ptr() // CACHE_LINE) * CACHE_LINE, *args)
        finally:
            if size <= MOST_KEPT:
                _memory.append(memory)

    return call


def _take_memory(size: int) -> torch.Tensor:
    try:
        memory = _memory.pop()
    except IndexError:
        memory = None
    if memory is None or len(memory) < size:
        memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    return memory


def _get_pool(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < size:
        _pool, _pool_size = ThreadPoolExecutor(size, "visattn"), size
    return _pool


def _forget_threads() -> None:
    global _openmp, _pool, _pool_size
    _openmp, _pool, _pool_size = None, None, 0


os.register_at_fork(after_in_child=_forget_threads)
