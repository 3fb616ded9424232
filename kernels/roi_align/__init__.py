"""RoIAlign: regions of a map, pooled to a fixed size (Mask R-CNN, arXiv 1703.06870)."""

from collections.abc import Sequence
from typing import Any

import torch

from .._library import register_operator
from .._rois import as_pair, as_rois, is_channels_last, memory_format
from ..dispatch import choose, cpu_can_run, is_transformed, triton_can_run
from . import reference

__all__ = ["roi_align"]


def roi_align(
    x: torch.Tensor,
    boxes: torch.Tensor | Sequence[torch.Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
    impl: str | None = None,
) -> torch.Tensor:
    """Averages bilinear samples in each bin of a grid over every region (section 3, RoIAlign).

    What ``torchvision.ops.roi_align`` computes. Samples up to one pixel outside the map take the
    value of its border, and those further away are zeros. Coordinates and sums are fp32 (fp64 for
    fp64 features), whatever autocast says.

    The backward pass is deterministic. Boxes have no gradient.

    Args:
        x: Features, (B, C, H, W).
        boxes: Corners x1, y1, x2, y2 of the regions: (R, 5) behind the index of their image, or
            (B, R, 4), or a list of one (R, 4) for each image.
        output_size: Bins of a region, as (height, width) or one for both.
        spatial_scale: Pixels of the map per unit of ``boxes``.
        sampling_ratio: Samples along a side of a bin; 0 for one per pixel begun.
        aligned: Whether pixel centres lie at half-integers. If not, they lie at integers, and
            regions are at least one pixel in size.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        (R, C, *output_size), in the dtype of ``x``, channels last where ``x`` is.

    Raises:
        ValueError: If a shape, ``output_size``, or an image's index on the CPU is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    size = as_pair("output_size", output_size)
    if x.ndim != 4 or not x.is_floating_point() or x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(
            "x must be (B, C, H, W), floating-point, with at least one pixel; got "
            f"{tuple(x.shape)}, {x.dtype}"
        )
    rois = as_rois(boxes, x)
    if rois.device.type == "cpu" and not (torch.compiler.is_compiling() or is_transformed()):
        _check_images(rois, x.shape[0])
    impl = choose(
        "roi_align",
        impl,
        {"triton": lambda: triton_can_run(x), "cpu": lambda: cpu_can_run(x)},
    )
    if impl == "reference":
        return reference.roi_align(x, rois, size, spatial_scale, sampling_ratio, aligned)
    return _operator(x, rois, size, spatial_scale, sampling_ratio, aligned, impl)


def _check_images(rois: torch.Tensor, images: int) -> None:
    index = rois[:, 0].numpy()
    if len(index) and not (index.min() >= 0 and index.max() < images):
        raise ValueError(
            f"boxes[:, 0] must be indices of the {images} images; they are from "
            f"{index.min():g} to {index.max():g}"
        )


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _forward(x, rois, size, scale, sampling_ratio, aligned, impl):
    last = is_channels_last(x)
    return _implementation(impl).forward(x, rois, size, scale, sampling_ratio, aligned, last)


def _fake_forward(x, rois, size, scale, sampling_ratio, aligned, impl):
    shape = (rois.shape[0], x.shape[1], *size)
    layout = memory_format(is_channels_last(x))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _backward(grad, rois, shape, scale, sampling_ratio, aligned, last, impl):
    return _implementation(impl).backward(grad, rois, shape, scale, sampling_ratio, aligned, last)


def _fake_backward(grad, rois, shape, scale, sampling_ratio, aligned, last, impl):
    layout = memory_format(last)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


def _setup_context(ctx, inputs, output):
    x, rois, _, *ctx.sampling, ctx.impl = inputs
    ctx.save_for_backward(rois)
    ctx.shape, ctx.last = x.shape, is_channels_last(x)


def _differentiate(ctx, grad):
    (rois,) = ctx.saved_tensors
    dx = _backward_operator(grad, rois, ctx.shape, *ctx.sampling, ctx.last, ctx.impl)
    return dx, None, None, None, None, None, None


_backward_operator = register_operator(
    "roi_align_backward(Tensor grad, Tensor rois, SymInt[] shape, float scale, "
    "int sampling_ratio, bool aligned, bool channels_last, str impl) -> Tensor",
    _backward,
    _fake_backward,
)
_operator = register_operator(
    "roi_align(Tensor x, Tensor rois, int[] size, float scale, int sampling_ratio, bool aligned, "
    "str impl) -> Tensor",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
