"""ROI-Unpool on GPUs: bilinear weights along either axis, then separable products."""

import torch
import triton
import triton.language as tl

from .._separable_triton import Weights, empty_weights, pool, spread
from .._triton import launch
from .reference import TOLERANCE

PIXELS = 128


def forward(rois, boxes, size, scale, aligned, channels_last):
    """Maps (R, C, *size)."""
    ys, xs = _weights(boxes, rois.shape[2:], size, scale, aligned)
    return spread(rois, None, ys, xs, (*rois.shape[:2], *size), channels_last)


def backward(grad, boxes, bins, scale, aligned, channels_last):
    """Gradient of the pooled regions."""
    ys, xs = _weights(boxes, bins, grad.shape[2:], scale, aligned)
    return pool(grad, None, ys, xs, channels_last)


@triton.jit
def roi_unpool_weights_kernel(
    p_boxes, p_w, p_range, scale, side,
    FIRST: tl.constexpr, BINS: tl.constexpr, ALIGNED: tl.constexpr, TOLERANCE: tl.constexpr,
    BS: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0)
    i_r, row = (i_b // BINS).to(tl.int64), i_b % BINS
    start = tl.load(p_boxes + i_r * 4 + FIRST) * scale
    stop = tl.load(p_boxes + i_r * 4 + FIRST + 2) * scale
    first, behind = tl.ceil(start - 0.5), tl.ceil(stop - 0.5)
    low, high = side, 0
    for begin in range(0, side, BS):
        i_x = begin + tl.arange(0, BS)
        pixel = i_x.to(tl.float32)
        visible = (pixel >= first) & (pixel < behind)
        if ALIGNED:
            place = (pixel + 0.5 - start) / (stop - start) * BINS - 0.5
            place = tl.minimum(tl.maximum(place, 0.0), BINS - 1.0)
        else:
            place = (pixel - first) / (behind - first) * BINS
            visible = visible & (place < BINS - 1 + TOLERANCE)
        b_w = tl.maximum(1.0 - tl.abs(place - row.to(tl.float32)), 0.0)
        b_w = tl.where(visible, b_w, 0.0)
        tl.store(p_w + (i_r * BINS + row) * side + i_x, b_w, mask=i_x < side)
        used = (b_w != 0) & (i_x < side)
        low = tl.minimum(low, tl.min(tl.where(used, i_x, side)))
        high = tl.maximum(high, tl.max(tl.where(used, i_x + 1, 0)))
    tl.store(p_range + (i_r * BINS + row) * 2, low)
    tl.store(p_range + (i_r * BINS + row) * 2 + 1, high)


def _weights(
    boxes: torch.Tensor, bins: tuple[int, int], size: tuple[int, int], scale: float, aligned: bool
) -> tuple[Weights, Weights]:
    """Weights along y and x."""
    result = []
    for first, count, side in ((1, bins[0], size[0]), (0, bins[1], size[1])):
        weights = empty_weights(len(boxes), count, side, boxes.device)
        launch(
            roi_unpool_weights_kernel,
            (len(boxes) * count,),
            p_boxes=boxes,
            p_w=weights.dense,
            p_range=weights.range,
            scale=scale,
            side=side,
            FIRST=first,
            BINS=count,
            ALIGNED=aligned,
            TOLERANCE=TOLERANCE,
            BS=PIXELS,
        )
        result.append(weights)
    return tuple(result)
