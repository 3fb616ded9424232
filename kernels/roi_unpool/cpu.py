"""ROI-Unpool on the CPU: bilinear weights along either axis, then separable products."""

import numpy as np
import torch

from .._jit import jit
from .._separable_cpu import TABLES, Taps, empty_taps, pool, spread, transpose, value_at
from .._threads import parallel_for
from .._vectors import put
from .reference import TOLERANCE


def forward(rois, boxes, size, scale, aligned, channels_last):
    """Maps (R, C, *size)."""
    ys, xs = _weights(boxes, rois.shape[2:], size, scale, aligned)
    shape = (*rois.shape[:2], *size)
    return spread(rois, np.arange(len(boxes)), ys, xs, shape, channels_last)


def backward(grad, boxes, bins, scale, aligned, channels_last):
    """Gradient of the pooled regions."""
    size = grad.shape[2:]
    ys, xs = _weights(boxes, bins, size, scale, aligned)
    ys = transpose(ys, bins[0], size[0], to_pixels=False)
    xs = transpose(xs, bins[1], size[1], to_pixels=False)
    return pool(grad, np.arange(len(boxes)), ys, xs, tuple(bins), channels_last)


def _weights(
    boxes: torch.Tensor, bins: tuple[int, int], size: tuple[int, int], scale: float, aligned: bool
) -> tuple[Taps, Taps]:
    """Weights along y and x with a row for each pixel inside a box."""
    taps = []
    for axis in (1, 0):
        side = size[1 - axis]
        table = empty_taps(len(boxes), side, 2 * side)
        parallel_for(
            _interpolate,
            len(boxes),
            boxes.numpy(),
            axis,
            bins[1 - axis],
            side,
            np.float32(scale),
            aligned,
            table,
            min_chunk=TABLES,
        )
        taps.append(table)
    return tuple(taps)


@jit
def _interpolate(begin, end, boxes, axis, bins, side, scale, aligned, taps):
    half, most = np.float32(0.5), np.float32(bins - 1)
    for box in range(begin, end):
        start, stop = boxes[box, axis] * scale, boxes[box, axis + 2] * scale
        first, behind = np.ceil(start - half), np.ceil(stop - half)
        low, high = 0, 0
        if first < behind and first < side and behind > 0:
            low, high = int(max(first, np.float32(0))), int(min(behind, np.float32(side)))
        taps.first[box], taps.count[box] = low, high - low
        count = 0
        for pixel in range(low, high):
            taps.start[box, pixel - low] = count
            at = np.float32(pixel)
            if aligned:
                place = (at + half - start) / (stop - start) * np.float32(bins) - half
                place = min(max(place, np.float32(0)), most)
            else:
                place = (at - first) / (behind - first) * np.float32(bins)
                if place >= most + np.float32(TOLERANCE):
                    continue
            index = min(int(place), bins - 1)
            part = place - np.float32(index)
            taps.elements[box, count, 0] = index
            put(value_at(taps, box, count), np.float32(1) - part)
            count += 1
            if part > 0 and index + 1 < bins:
                taps.elements[box, count, 0] = index + 1
                put(value_at(taps, box, count), part)
                count += 1
        taps.start[box, high - low] = count
