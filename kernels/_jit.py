"""Numba's compiler, with a disk cache that knows what compiled code depends on."""

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numba
from llvmlite import binding
from numba import types
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.registry import CPUDispatcher
from numba.core.runtime import rtsys
from numba.extending import intrinsic

__all__ = ["entry", "inline", "integers", "jit", "part"]

inline = numba.njit(inline="always")
"""Compiles a function into its callers."""

_parts = []
"""The parts, which are kept for as long as code may call them."""


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function that Python calls, at the first call; it releases the interpreter lock.

    The machine code is cached on disk, so that the next process starts at once. Numba's own cache
    only asks whether the function's file has changed; this one also asks about the building blocks
    that are compiled into it. Where no folder for the cache can be written, there is none.
    """
    return _compiled(function)


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function that only compiled code calls, for the types of each call.

    Constants among the arguments make code of their own. All of it is optimised once more as a
    piece of each caller, and of those that call them: what is large, and gains nothing by that, is
    better a ``part``.
    """
    return _compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def integers(count: int) -> types.UniTuple:
    """The type of a tuple of integers, such as a ``part`` may take."""
    return types.UniTuple(types.int64, count)


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function once and for all, for compiled code to call by its name.

    Parameters have the types of their annotations, those of Numba, and are ``int64`` without one;
    a function without an annotation returns nothing. Errors are raised in the caller. A part is
    compiled where it is defined, and has to be below what it calls.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    kinds = tuple(types.int64 if p.annotation is p.empty else p.annotation for p in parameters)
    result = signature.return_annotation
    result = types.none if result is signature.empty else result
    dispatcher = jit(function)
    dispatcher.compile(result(*kinds))
    compiled = dispatcher.overloads[kinds]
    name = f"{function.__module__}.{function.__qualname__}"
    address = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    binding.add_symbol(name, address)
    _parts.append(compiled)

    def codegen(context, builder, _, args):
        convention = context.call_conv
        kind = convention.get_function_type(result, kinds)
        callee = cgutils.get_or_insert_function(builder.module, kind, name)
        status, value = convention.call_function(builder, callee, result, kinds, args)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return value

    def call(typingctx, *args, **kwargs):
        return result(*kinds), codegen

    # With it, calls may name parameters and leave out those with a default.
    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = signature.replace(parameters=[context, *parameters])
    return intrinsic(functools.wraps(function)(call))


def _compiled(function: Callable[..., Any], **options: bool) -> CPUDispatcher:
    dispatcher = numba.njit(nogil=True, **options)(function)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError as error:
        warnings.warn(
            f"kernels are compiled anew in every process ({error}): set NUMBA_CACHE_DIR to a "
            "folder that can be written",
            stacklevel=3,
        )
    return dispatcher


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]):
        super().__init__(function)
        digest = _digest(Path(function.__code__.co_filename).parent)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, digest)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Numba would first import all that it can compile, which takes longer than the rest of a
        # first call; compiling does that itself.
        rtsys.initialize(target_context)
        try:
            with self._guard_against_spurious_io_errors():
                return self._load_overload(sig, target_context)
        except (AttributeError, ImportError, UnpicklingError):
            # An index that another version wrote, of types which are no more.
            self.flush()
            return None


@functools.cache
def _digest(folder: Path) -> str:
    """Digest of what code in a folder may be made of: private modules there, and the shared."""
    folders = (Path(__file__).parent, folder)
    sources = sorted({source for place in folders for source in place.glob("_[a-z]*.py")})
    return hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest()
