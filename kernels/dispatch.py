"""Choice of the implementation that an op runs with.

Every op takes ``impl``: ``"reference"`` is its definition in plain torch, ``"cpu"`` fused vector
code (Numba), ``"triton"`` fused GPU code, ``"natten"`` NATTEN's own kernels where an op has them.
``"auto"`` takes the fastest that can run, and the definition for what must go through it: exports,
and transforms of ``torch.func``. An implementation asked for by name runs or raises with the
reason; it never falls back.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

import torch

__all__ = [
    "IMPLEMENTATIONS",
    "Capability",
    "cast_for_autocast",
    "choose",
    "cpu_can_run",
    "default_impl",
    "is_transformed",
    "triton_can_run",
    "use_impl",
]

IMPLEMENTATIONS = ("auto", "reference", "cpu", "triton", "natten")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Capability = tuple[bool, str]
"""Whether something can run, and if not, why."""

_log = logging.getLogger("visattn.kernels")
_has_numba = find_spec("numba") is not None
_has_triton = find_spec("triton") is not None
interprets_triton = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
TRITON_DEVICE = "cpu" if interprets_triton else "cuda"
_default = os.environ.get("VISATTN_IMPL", "auto")
_announced: set[tuple[str, str]] = set()


def default_impl() -> str:
    """The implementation of ops that are not asked for one."""
    return _default


@contextmanager
def use_impl(impl: str) -> Iterator[None]:
    """Makes an implementation the default of all ops, for the whole process, within a block.

    The environment variable ``VISATTN_IMPL`` sets the default outside such blocks. An ``impl``
    given to an op itself goes first.

    Raises:
        ValueError: If there is no such implementation.
    """
    global _default
    before, _default = _default, _known(impl, "use_impl")
    try:
        yield
    finally:
        _default = before


def choose(op: str, impl: str | None, candidates: Mapping[str, Callable[[], Capability]]) -> str:
    """The implementation to run an op with.

    Args:
        op: Name of the op, for messages.
        impl: What the caller asks for; None for the default of ``use_impl`` or ``VISATTN_IMPL``.
        candidates: Test of each fused implementation, the fastest first. ``"reference"`` always
            can run.

    Raises:
        ValueError: If there is no such implementation.
        RuntimeError: If the one asked for by name cannot run, with the reason.
    """
    if impl is None:
        impl = _known(_default, "VISATTN_IMPL")
    elif impl not in IMPLEMENTATIONS:
        _known(impl, "impl")
    if impl == "reference":
        return impl
    if impl != "auto":
        if impl not in candidates:
            raise RuntimeError(
                f"{op} has no implementation {impl!r}, only "
                f"{', '.join(map(repr, ('reference', *candidates)))}"
            )
        ok, reason = candidates[impl]()
        if not ok:
            raise RuntimeError(f"{op} cannot run with impl={impl!r}: {reason}")
        return impl
    # What is exported must run without visattn, and transforms see into plain operators alone.
    if torch.compiler.is_exporting() or is_transformed():
        return "reference"
    reasons = []
    for name, can_run in candidates.items():
        ok, reason = can_run()
        # Interpreted Triton is for tests: asked for by name only.
        if ok and not (name == "triton" and interprets_triton):
            _announce(op, name, reasons)
            return name
        reasons.append(f"{name}: {reason}")
    _announce(op, "reference", reasons)
    return "reference"


def is_transformed() -> bool:
    """Whether a transform of ``torch.func``, such as ``grad``, runs what is called."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def cpu_can_run(*tensors: torch.Tensor | None) -> Capability:
    """Whether fused CPU code takes these tensors."""
    if not _has_numba:
        return False, "numba is not installed: pip install numba"
    return _are(tensors, "cpu")


def triton_can_run(*tensors: torch.Tensor | None) -> Capability:
    """Whether Triton takes these tensors; CPU tensors only under ``TRITON_INTERPRET=1``."""
    if not _has_triton:
        return False, "triton is not installed: pip install triton"
    return _are(tensors, TRITON_DEVICE)


def cast_for_autocast(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Casts floating tensors to autocast's dtype where it is on, as torch's matmul does.

    The first one tells the device; others may be None.
    """
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _are(tensors: tuple[torch.Tensor | None, ...], device: str) -> Capability:
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != device:
            return False, f"it takes tensors on {device}, and one is on {tensor.device.type}"
        if tensor.dtype not in DTYPES:
            return False, f"it takes float32, bfloat16 and float16, and one is {tensor.dtype}"
    return True, ""


def _known(impl: str, source: str) -> str:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{source} must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    return impl


def _announce(op: str, impl: str, reasons: list[str]) -> None:
    if torch.compiler.is_compiling() or (op, impl) in _announced:
        return
    _announced.add((op, impl))
    _log.info("%s runs with impl=%r%s", op, impl, f" ({'; '.join(reasons)})" if reasons else "")
