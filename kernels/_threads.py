"""Work on all of torch's threads, for compiled kernels.

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

from . import _forks
from ._launch import launcher

__all__ = ["parallel_for"]

CHUNKS_PER_THREAD = 8
CACHE_LINE = 64
MOST_KEPT = 2**24
"""Most bytes of scratch memory that are kept between calls, a thread."""

_memory: list[torch.Tensor] = []
"""Scratch memory that is not in use."""
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _find_openmp() -> int:
    """Address of ``GOMP_parallel`` in the library that torch has loaded, or 0."""
    if sys.platform != "linux":
        return 0
    for path in Path(torch.__file__).parent.glob("lib/libgomp*.so*"):
        try:
            run = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(run, ctypes.c_void_p).value
    return 0


_openmp = 0 if _forks.happened else _find_openmp()


def parallel_for(
    kernel: Callable[..., None], tasks: int, *args: Any, min_chunk: int = 1, scratch: int = 0
) -> None:
    """Calls ``kernel(begin, end, *args)`` on ranges that together are ``range(tasks)``.

    The ranges are a few for each of ``torch.get_num_threads()`` threads, which take them as they
    get free; which thread takes which is left open, so a kernel must not let results depend on it.

    Args:
        kernel: Function compiled by ``jit``.
        tasks: Number of tasks; none is fine.
        *args: Further arguments.
        min_chunk: Fewest tasks worth a call of their own.
        scratch: Bytes of memory for each thread alone, the address of which then comes before
            ``args``. It is kept for later calls, holds what the last one left, and starts a cache
            line.

    Raises:
        RuntimeError: If the kernel raises an error.
    """
    if tasks == 0:
        return
    launch = launcher(kernel, scratch > 0)
    threads = min(torch.get_num_threads(), (tasks + min_chunk - 1) // min_chunk)
    size = -(-scratch // CACHE_LINE) * CACHE_LINE
    memory = _take_memory(threads * size + CACHE_LINE) if scratch else None
    place = -(-memory.data_ptr() // CACHE_LINE) * CACHE_LINE if scratch else 0
    chunk = max(-(-tasks // (threads * CHUNKS_PER_THREAD)), min_chunk)
    if threads == 1:
        failed = launch(0, 1, 0, tasks, tasks, place, size, args)
    elif _openmp:
        failed = launch(_openmp, threads, 0, tasks, chunk, place, size, args)
    else:
        failed = _launch_on_pool(launch, threads, tasks, chunk, place, size, args)
    if scratch and size <= MOST_KEPT:
        _memory.append(memory)
    if failed:
        raise RuntimeError(f"the kernel {kernel.__name__} raised an error in {failed} calls")


def _launch_on_pool(
    launch: Callable[..., int],
    threads: int,
    tasks: int,
    chunk: int,
    place: int,
    size: int,
    args: tuple[Any, ...],
) -> int:
    starts = iter(range(0, tasks, chunk))

    def work(memory: int) -> int:
        return sum(
            launch(0, 1, start, min(start + chunk, tasks), chunk, memory, size, args)
            for start in starts
        )

    pool = _get_pool(threads - 1)
    others = [pool.submit(work, place + i * size) for i in range(1, threads)]
    try:
        failed = work(place)
    finally:
        # Nobody may return while a thread still writes to the caller's tensors; those that have
        # not begun have nothing left to do.
        results = [other.result() for other in others if not other.cancel()]
    return failed + sum(results)


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
    _openmp, _pool, _pool_size = 0, None, 0


os.register_at_fork(after_in_child=_forget_threads)
