"""Numba's compiler, with a disk cache that knows what compiled code depends on."""

import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.typing import Signature

__all__ = ["c_function", "inline", "jit"]

inline = numba.njit(inline="always")
"""Compiles a function into its callers."""


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function at its first call; it releases the interpreter lock.

    The machine code is cached on disk, so that the next process starts at once. Numba's own cache
    only asks whether the function's file has changed; this one also asks about the building blocks
    that are compiled into it. Where no folder for the cache can be written, there is none.
    """
    dispatcher = numba.njit(nogil=True)(function)
    _remember(dispatcher, function)
    return dispatcher


def c_function(signature: Signature) -> Callable[[Callable[..., Any]], CFunc]:
    """Compiles a function to be called through its ``address``, with a cache like that of ``jit``.

    Numba compiles what a function calls once more into each caller; large code, such as register
    tiles of many sizes, is better called through a pointer.
    """

    def decorate(function: Callable[..., Any]) -> CFunc:
        compiled = CFunc(function, (signature.args, signature.return_type), {}, {})
        _remember(compiled, function)
        compiled.compile()
        return compiled

    return decorate


def _remember(compiled: Any, function: Callable[..., Any]) -> None:
    try:
        compiled._cache = _Cache(function)
    except RuntimeError as error:
        warnings.warn(
            f"kernels are compiled anew in every process ({error}): set NUMBA_CACHE_DIR to a "
            "folder that can be written",
            stacklevel=3,
        )


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        digest = _digest(Path(function.__code__.co_filename).parent)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, digest)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except (AttributeError, ImportError, UnpicklingError):
            # An index that another version wrote, of types which are no more.
            self.flush()
            return None


@cache
def _digest(folder: Path) -> str:
    """Digest of what code in a folder may be made of: private modules there, and the shared."""
    folders = (Path(__file__).parent, folder)
    sources = sorted({source for place in folders for source in place.glob("_[a-z]*.py")})
    return hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest()
