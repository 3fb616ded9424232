"""Launching Triton kernels, and recording launches so that they can be compiled without a GPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

__all__ = [
    "INTERPRETED",
    "Launch",
    "dot",
    "dot_precision",
    "launch",
    "load_rows",
    "record_launches",
    "store_rows",
]

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"))


class Launch(NamedTuple):
    """One launch of a kernel: what it was called with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, int]


_record: list[Launch] | None = None


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    maxnreg: int | None = None,
    **arguments: Any,
) -> None:
    """Runs a kernel on the device of its tensors; an empty grid is no launch.

    Args:
        kernel: ``triton.jit`` function.
        grid: Programs along each axis.
        num_warps: Warps of a program.
        num_stages: Depth of software pipelines.
        maxnreg: Most registers of a thread, on Nvidia's GPUs. By default ``ptxas`` may spill a few
            to have more blocks resident; 255, all there are, forbids that.
        **arguments: The kernel's arguments, constants included, by name.
    """
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if maxnreg is not None and not torch.version.hip:
        options["maxnreg"] = maxnreg
    if _record is not None:
        _record.append(Launch(kernel, grid, arguments, options))
    elif 0 not in grid:
        tensor = next(a for a in arguments.values() if isinstance(a, torch.Tensor))
        with torch.accelerator.device_index(tensor.get_device() if tensor.is_cuda else None):
            kernel[grid](**arguments, **options)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Collects launches instead of running them, so that tensors may be on the meta device."""
    global _record
    before, _record = _record, []
    try:
        yield _record
    finally:
        _record = before


def dot_precision(dtype: torch.dtype) -> str:
    """How ``tl.dot`` multiplies: fp32 in three tf32 products unless torch is told that one will do.

    Three products on tensor cores are as exact as fp32 to rounding, and several times faster. AMD's
    matrix cores multiply in fp32 itself.
    """
    if dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """``tl.dot`` with fp32 sums; the interpreter, which has no bf16 product, multiplies in fp32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_rows(p, start, s_t, T, BT: tl.constexpr, D, BD: tl.constexpr):
    """Rows [BT, BD] of a matrix (T, D) from one on; zeros beyond."""
    i_t, i_d = tl.arange(0, BT)[:, None], tl.arange(0, BD)[None, :]
    p += tl.cast(start, tl.int64) * s_t
    return tl.load(p + i_t * s_t + i_d, mask=(start + i_t < T) & (i_d < D), other=0.0)


@triton.jit
def store_rows(p, b, start, s_t, T, BT: tl.constexpr, D, BD: tl.constexpr):
    """Stores what ``load_rows`` loads."""
    i_t, i_d = tl.arange(0, BT)[:, None], tl.arange(0, BD)[None, :]
    p += tl.cast(start, tl.int64) * s_t
    mask = (start + i_t < T) & (i_d < D)
    tl.store(p + i_t * s_t + i_d, b.to(p.dtype.element_ty), mask=mask)
