"""Work on all of torch's threads for kernels that release the interpreter lock.

A pool of our own, not OpenMP's: a process forked after an OpenMP region cannot enter another one,
and data loaders fork. Threads are made when first needed and made anew in a forked child.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["parallel_for"]

CHUNKS_PER_THREAD = 4
CACHE_LINE = 64
MOST_KEPT = 2**24
"""Most bytes of scratch memory that a thread keeps between calls."""

_memory = threading.local()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


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

    def work() -> None:
        for start in starts:
            kernel(start, min(start + chunk, tasks), *args)

    pool = _get_pool(threads - 1)
    others = [pool.submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        # Nobody may return while a thread still writes to the caller's tensors; those that have not
        # begun have nothing left to do.
        errors = [other.exception() for other in others if not other.cancel()]
    for error in errors:
        if error is not None:
            raise error


def _with_scratch(kernel: Callable[..., None], size: int) -> Callable[..., None]:
    def call(begin: int, end: int, *args: Any) -> None:
        memory = getattr(_memory, "tensor", None)
        if memory is None or len(memory) < size + CACHE_LINE:
            memory = torch.empty(size + CACHE_LINE, dtype=torch.uint8, device="cpu")
            if size <= MOST_KEPT:
                _memory.tensor = memory
        kernel(begin, end, -(-memory.data_ptr() // CACHE_LINE) * CACHE_LINE, *args)

    return call


def _get_pool(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    if _pool is None or _pool_size < size:
        _pool, _pool_size = ThreadPoolExecutor(size, "visattn"), size
    return _pool


def _forget_pool() -> None:
    global _pool, _pool_size
    _pool, _pool_size = None, 0


os.register_at_fork(after_in_child=_forget_pool)
