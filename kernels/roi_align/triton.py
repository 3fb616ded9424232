"""RoIAlign on GPUs: bilinear weights along either axis, then separable products."""

import torch
import triton
import triton.language as tl

from .._separable_triton import Weights, empty_weights, pool, spread
from .._triton import launch

PIXELS = 128
CANDIDATES = tl.constexpr(6)
"""Adaptive samples that may be less than one pixel away from a pixel; see the reference."""


def forward(x, rois, size, scale, sampling_ratio, aligned, channels_last):
    """Pooled regions (R, C, *size)."""
    ys, xs = _weights(rois, x.shape, size, scale, sampling_ratio, aligned)
    return pool(x, rois[:, 0].long(), ys, xs, channels_last)


def backward(grad, rois, shape, scale, sampling_ratio, aligned, channels_last):
    """Gradient of the features."""
    ys, xs = _weights(rois, shape, grad.shape[2:], scale, sampling_ratio, aligned)
    return spread(grad, rois[:, 0].long(), ys, xs, tuple(shape), channels_last)


@triton.jit
def roi_align_weights_kernel(
    p_rois, p_w, p_range, scale, images, side,
    FIRST: tl.constexpr, BINS: tl.constexpr, RATIO: tl.constexpr, ALIGNED: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0)
    i_r, row = (i_b // BINS).to(tl.int64), i_b % BINS
    image = tl.load(p_rois + i_r * 5)
    shift = 0.5 if ALIGNED else 0.0
    start = tl.load(p_rois + i_r * 5 + FIRST) * scale - shift
    extent = tl.load(p_rois + i_r * 5 + FIRST + 2) * scale - shift - start
    if not ALIGNED:
        extent = tl.maximum(extent, 1.0)
    # The number of samples jumps where this is whole: it must be rounded correctly.
    step = tl.div_rn(extent, tl.full([], BINS, tl.float32))
    count = RATIO if RATIO > 0 else tl.ceil(step)
    known = (image >= 0) & (image < images)
    divisor = tl.maximum(count, 1.0)
    origin = start + row.to(tl.float32) * step
    low, high = side, 0
    for begin in range(0, side, BS):
        i_x = begin + tl.arange(0, BS)
        pixel = i_x.to(tl.float32)
        b_w = tl.zeros([BS], tl.float32)
        if RATIO > 0:
            for i in range(RATIO):
                b_w += _weight(origin + (i + 0.5) * step / divisor, pixel, side)
        else:
            spacing = tl.maximum(step / divisor, 1e-30)
            first = tl.maximum(tl.floor((pixel - 1 - origin) / spacing - 0.5), 0.0)
            for i in range(CANDIDATES):
                sample = first + i
                b_i = _weight(origin + (sample + 0.5) * step / divisor, pixel, side)
                b_w += tl.where(sample < count, b_i, 0.0)
        b_w = tl.where(known, b_w / divisor, 0.0)
        tl.store(p_w + (i_r * BINS + row) * side + i_x, b_w, mask=i_x < side)
        used = (b_w != 0) & (i_x < side)
        low = tl.minimum(low, tl.min(tl.where(used, i_x, side)))
        high = tl.maximum(high, tl.max(tl.where(used, i_x + 1, 0)))
    tl.store(p_range + (i_r * BINS + row) * 2, low)
    tl.store(p_range + (i_r * BINS + row) * 2 + 1, high)


@triton.jit
def _weight(position, pixel, side):
    """Weight of pixels in the bilinear sample at a position; none beyond one outside the map."""
    place = tl.minimum(tl.maximum(position, 0.0), side - 1.0)
    weight = tl.maximum(1.0 - tl.abs(place - pixel), 0.0)
    return tl.where((position >= -1) & (position <= side), weight, 0.0)


def _weights(
    rois: torch.Tensor,
    shape: torch.Size,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Weights, Weights]:
    """Weights along y and x."""
    result = []
    for first, bins, side in ((2, size[0], shape[2]), (1, size[1], shape[3])):
        weights = empty_weights(len(rois), bins, side, rois.device)
        launch(
            roi_align_weights_kernel,
            (len(rois) * bins,),
            p_rois=rois,
            p_w=weights.dense,
            p_range=weights.range,
            scale=scale,
            images=shape[0],
            side=side,
            FIRST=first,
            BINS=bins,
            RATIO=max(sampling_ratio, 0),
            ALIGNED=aligned,
            BS=PIXELS,
        )
        result.append(weights)
    return tuple(result)
