"""Memory for large results on the CPU, which is kept for later ones.

What the C library returns to the system must be mapped and zeroed again, page by page, when it is
next asked for: that can take longer than all that a kernel writes there. Large results are
therefore in blocks of huge pages, which come back here when the last tensor on them is gone.
"""

import contextlib
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["empty", "empty_like", "without_reuse"]

LARGE = 2**20
"""Fewest bytes of a result that gets a block."""
MOST_IDLE = 2**29
"""Most bytes of blocks that are kept while nothing uses them."""
HUGE_PAGE = 2**21

_private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
"""Kind of memory that a forked process gets a copy of; where there is none, nothing is kept."""


class _Block(NamedTuple):
    memory: mmap.mmap
    start: int
    size: int


class _Idle:
    """Blocks that nothing uses, the longest unused first."""

    def __init__(self):
        self.blocks: list[_Block] = []
        # A collection of garbage may give a block back while its thread holds the lock.
        self.lock = threading.RLock()

    def take(self, size: int) -> _Block:
        """The smallest block of a size that is not much too large, or a new one.

        Of several the one used last, of which the most may still be in the cache.
        """
        most = max(size + HUGE_PAGE, size + size // 4)
        with self.lock:
            fitting = [block for block in reversed(self.blocks) if size <= block.size <= most]
            if fitting:
                block = min(fitting, key=lambda block: block.size)
                self.blocks = [other for other in self.blocks if other.memory is not block.memory]
                return block
        return _new_block(size)

    def give_back(self, block: _Block) -> None:
        """Keeps a block, and parts with those unused for longest if it is one too many."""
        with self.lock:
            blocks = [*self.blocks, block]
            total = sum(block.size for block in blocks)
            while total > MOST_IDLE:
                total -= blocks.pop(0).size
            self.blocks = blocks


def _new_block(size: int) -> _Block:
    size = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=_private)
    address = np.frombuffer(memory, np.uint8).ctypes.data
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # advice that a system may not take
            memory.madvise(mmap.MADV_HUGEPAGE)
    return _Block(memory, -address % HUGE_PAGE, size)


_idle = _Idle()
_reuses = True


def _renew_lock() -> None:
    _idle.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


@contextlib.contextmanager
def without_reuse() -> Iterator[None]:
    """Within it all memory comes from PyTorch's allocator, whose records then know of it."""
    global _reuses
    before, _reuses = _reuses, False
    try:
        yield
    finally:
        _reuses = before


def empty(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """``torch.empty`` on the CPU, in a block where it is large."""
    flat = _flat(math.prod(shape), dtype)
    if flat is None:
        return torch.empty(shape, dtype=dtype, device="cpu", memory_format=memory_format)
    if memory_format == torch.channels_last:
        batch, channels, height, width = shape
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """``torch.empty_like`` on the CPU, as ``empty``."""
    flat = _flat(x.numel(), x.dtype)
    if flat is None:
        return torch.empty_like(x)
    return flat.as_strided(x.shape, torch.empty_like(x, device="meta").stride())


def _flat(count: int, dtype: torch.dtype) -> torch.Tensor | None:
    """Elements in a block, unless they are few or wanted from PyTorch."""
    size = count * dtype.itemsize
    if size < LARGE or not _reuses or not _private:
        return None
    if torch.are_deterministic_algorithms_enabled() and (
        torch.utils.deterministic.fill_uninitialized_memory
    ):
        return None
    block = _idle.take(size)
    array = np.frombuffer(block.memory, np.uint8, size, block.start)
    weakref.finalize(array, _idle.give_back, block).atexit = False
    return torch.from_numpy(array).view(dtype)
