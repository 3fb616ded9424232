"""ROI-Unpool: pooled regions, put back where they came from (ROICtrl, arXiv 2411.17949)."""

from collections.abc import Sequence
from typing import Any

import torch

from .._library import register_operator
from .._rois import as_pair, as_rois, is_channels_last, memory_format
from ..dispatch import choose, cpu_can_run, triton_can_run
from . import reference

__all__ = ["roi_unpool"]

MODES = ("official", "aligned")


def roi_unpool(
    rois: torch.Tensor,
    boxes: torch.Tensor | Sequence[torch.Tensor],
    size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    mode: str = "official",
    impl: str | None = None,
) -> torch.Tensor:
    """Interpolates pooled regions at the pixels inside their boxes; zeros elsewhere (section 3.2).

    The inverse of ``roi_align(aligned=True)`` as far as there is one: what is constant in a box
    comes back as it was, and so does everything where bins are pixels. The pixels inside a box are
    those whose centres are. Coordinates and sums are fp32 (fp64 for fp64 features).

    * ``"official"``: the authors' kernel, which their weights need. Boxes are rounded to pixels
      and bins interpolated without their half-bin offset, so that contents move up and left by
      half a bin less half a pixel; pixels behind the centre of the last bin are zeros.
    * ``"aligned"``: bins are interpolated between their centres, and constant beyond the first and
      last; nothing moves, nothing is lost.

    The backward pass is deterministic. Boxes have no gradient.

    Args:
        rois: Pooled regions, (R, C, P, Q).
        boxes: Corners x1, y1, x2, y2 of the regions: (R, 4), or any form that ``roi_align`` takes.
        size: Pixels of the map, as (height, width) or one for both.
        spatial_scale: Pixels of the map per unit of ``boxes``.
        mode: ``"official"`` or ``"aligned"``.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        A map for each region, (R, C, *size), in the dtype of ``rois``, channels last where they
        are.

    Raises:
        ValueError: If a shape, ``size`` or ``mode`` is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    size = as_pair("size", size)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if rois.ndim != 4 or not rois.is_floating_point() or rois.shape[2] < 1 or rois.shape[3] < 1:
        raise ValueError(
            "rois must be (R, C, P, Q), floating-point, with at least one bin; got "
            f"{tuple(rois.shape)}, {rois.dtype}"
        )
    if isinstance(boxes, torch.Tensor) and boxes.ndim == 2 and boxes.shape[1] == 4:
        boxes = [boxes]
    boxes = as_rois(boxes, rois)[:, 1:].contiguous()
    if boxes.shape[0] != rois.shape[0]:
        raise ValueError(
            f"boxes must be as many as rois; got {boxes.shape[0]} boxes, rois {tuple(rois.shape)}"
        )
    aligned = mode == "aligned"
    impl = choose(
        "roi_unpool",
        impl,
        {"triton": lambda: triton_can_run(rois), "cpu": lambda: cpu_can_run(rois)},
    )
    if impl == "reference":
        return reference.roi_unpool(rois, boxes, size, spatial_scale, aligned)
    return _operator(rois, boxes, size, spatial_scale, aligned, impl)


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _forward(rois, boxes, size, scale, aligned, impl):
    last = is_channels_last(rois)
    return _implementation(impl).forward(rois, boxes, size, scale, aligned, last)


def _fake_forward(rois, boxes, size, scale, aligned, impl):
    shape = (*rois.shape[:2], *size)
    layout = memory_format(is_channels_last(rois))
    return torch.empty(shape, dtype=rois.dtype, device=rois.device, memory_format=layout)


def _backward(grad, boxes, bins, scale, aligned, last, impl):
    return _implementation(impl).backward(grad, boxes, bins, scale, aligned, last)


def _fake_backward(grad, boxes, bins, scale, aligned, last, impl):
    shape = (*grad.shape[:2], *bins)
    layout = memory_format(last)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _setup_context(ctx, inputs, output):
    rois, boxes, _, ctx.scale, ctx.aligned, ctx.impl = inputs
    ctx.save_for_backward(boxes)
    ctx.bins, ctx.last = rois.shape[2:], is_channels_last(rois)


def _differentiate(ctx, grad):
    (boxes,) = ctx.saved_tensors
    drois = _backward_operator(grad, boxes, ctx.bins, ctx.scale, ctx.aligned, ctx.last, ctx.impl)
    return drois, None, None, None, None, None


_backward_operator = register_operator(
    "roi_unpool_backward(Tensor grad, Tensor boxes, SymInt[] bins, float scale, bool aligned, "
    "bool channels_last, str impl) -> Tensor",
    _backward,
    _fake_backward,
)
_operator = register_operator(
    "roi_unpool(Tensor rois, Tensor boxes, SymInt[] size, float scale, bool aligned, str impl) "
    "-> Tensor",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
