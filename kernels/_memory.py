"""Memory for large results on the CPU."""

import ctypes
import mmap
import sys

import torch

__all__ = ["empty", "empty_like"]

LARGE = 2**22
"""Bytes from which on huge pages are asked for, as numpy does for its arrays."""

_libc = ctypes.CDLL(None) if sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE") else None


def empty(
    *shape: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """``torch.empty`` on the CPU, in huge pages where it is large and the system has them.

    The system zeroes and maps fresh memory page by page as it is written, which can take longer
    than what a kernel writes there.
    """
    return _in_huge_pages(torch.empty(shape, dtype=dtype, memory_format=memory_format))


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """``torch.empty_like`` on the CPU, in huge pages as ``empty``."""
    return _in_huge_pages(torch.empty_like(x))


def _in_huge_pages(out: torch.Tensor) -> torch.Tensor:
    if _libc is not None and out.nbytes >= LARGE:
        start = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (out.data_ptr() + out.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        # Advice that is not taken does not matter.
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return out
