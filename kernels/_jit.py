"""Numba's compiler, with a disk cache that knows what compiled code depends on."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

__all__ = ["inline", "jit"]

inline = numba.njit(inline="always")
"""Compiles a function into its callers."""


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function at its first call; it releases the interpreter lock.

    The machine code is cached on disk, so that the next process starts at once. Numba's own cache
    only asks whether the function's file has changed; this one also asks about the building blocks
    that are compiled into it. Where no folder for the cache can be written, there is none.
    """
    dispatcher = numba.njit(nogil=True)(function)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError as error:
        warnings.warn(
            f"kernels are compiled anew in every process ({error}): set NUMBA_CACHE_DIR to a "
            "folder that can be written",
            stacklevel=2,
        )
    return dispatcher


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, _building_blocks())


def _building_blocks() -> str:
    global _digest
    if _digest is None:
        folder = Path(__file__).parent
        sources = (folder / name for name in ("_jit.py", "_simd.py", "_blocks.py"))
        _digest = hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest()
    return _digest


_digest: str | None = None
