"""RoIAlign on the CPU: bilinear weights along either axis, then separable products."""

import numpy as np
import torch

from .._jit import inline, jit
from .._separable_cpu import TABLES, Taps, empty_taps, pool, spread, transpose, value_at
from .._threads import parallel_for
from .._vectors import get, put


def forward(x, rois, size, scale, sampling_ratio, aligned, channels_last):
    """Pooled regions (R, C, *size)."""
    maps, ys, xs = _weights(rois, x.shape, size, scale, sampling_ratio, aligned)
    return pool(x, maps, ys, xs, tuple(size), channels_last)


def backward(grad, rois, shape, scale, sampling_ratio, aligned, channels_last):
    """Gradient of the features."""
    size = grad.shape[2:]
    maps, ys, xs = _weights(rois, shape, size, scale, sampling_ratio, aligned)
    ys = transpose(ys, size[0], shape[2], to_pixels=True)
    xs = transpose(xs, size[1], shape[3], to_pixels=True)
    return spread(grad, maps, ys, xs, tuple(shape), channels_last)


def _weights(
    rois: torch.Tensor,
    shape: torch.Size,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[np.ndarray, Taps, Taps]:
    """Image of each region, and its weights along y and x with a row for each bin."""
    rois = rois.numpy()
    taps = []
    for axis, bins, side in ((1, size[0], shape[2]), (0, size[1], shape[3])):
        # Adaptive samples lie one after the other over the map, with three more pixels a bin at
        # the most for the corners and the shared ones.
        capacity = bins * min(2 * sampling_ratio, side) if sampling_ratio > 0 else side + 3 * bins
        table = empty_taps(len(rois), bins, capacity + 1)
        parallel_for(
            _sample,
            len(rois),
            rois,
            shape[0],
            axis,
            bins,
            side,
            np.float32(scale),
            sampling_ratio,
            aligned,
            table,
            min_chunk=TABLES,
        )
        taps.append(table)
    return rois[:, 0].astype(np.int64), *taps


@jit
def _sample(begin, end, rois, images, axis, bins, side, scale, ratio, aligned, taps):
    shift = np.float32(0.5 if aligned else 0)
    half, last = np.float32(0.5), np.float32(side - 1)
    for box in range(begin, end):
        start = rois[box, 1 + axis] * scale - shift
        extent = rois[box, 3 + axis] * scale - shift - start
        if not aligned:
            extent = max(extent, np.float32(1))
        step = extent / np.float32(bins)
        samples = np.float32(ratio) if ratio > 0 else np.ceil(step)
        low, high, count = side, -1, 0
        if not 0 <= rois[box, 0] < images:
            samples = np.float32(0)
        for row in range(bins):
            taps.start[box, row] = count
            origin = start + np.float32(row) * step
            begin_at, end_at = _on_the_map(origin, step, samples, side)
            for sample in range(begin_at, end_at):
                at = origin + (np.float32(sample) + half) * step / samples
                if not -1 <= at <= side:
                    continue
                at = min(max(at, np.float32(0)), last)
                pixel = int(at)
                part = at - np.float32(pixel)
                first = taps.start[box, row]
                low, high = min(low, pixel), max(high, pixel)
                count = _add(taps, box, first, count, pixel, (np.float32(1) - part) / samples)
                if part > 0:
                    high = max(high, pixel + 1)
                    count = _add(taps, box, first, count, pixel + 1, part / samples)
        taps.start[box, bins] = count
        taps.first[box] = low if count > 0 else 0
        taps.count[box] = high - low + 1 if count > 0 else 0
        for k in range(count):
            taps.elements[box, k, 0] -= low


@inline
def _on_the_map(origin, step, samples, side):
    """Range of a bin's samples without those far outside the map, which may be many."""
    if not 0 < samples < 2**31:
        return 0, 0
    spacing = step / samples
    if samples < 64 or spacing == 0:
        return 0, int(samples)
    one, other = (np.float32(-2) - origin) / spacing, (np.float32(side + 1) - origin) / spacing
    low, high = np.floor(min(one, other)) - 2, np.ceil(max(one, other)) + 2
    return int(min(max(low, 0), samples)), int(min(max(high, 0), samples))


@inline
def _add(taps, box, first, count, pixel, weight):
    """Adds to the weight of a pixel in the bin whose elements begin at ``first``.

    Returns:
        The number of elements. The pixels of a sample are at most three elements behind.
    """
    for k in range(max(first, count - 4), count):
        if taps.elements[box, k, 0] == pixel:
            place = value_at(taps, box, k)
            put(place, get(place) + weight)
            return count
    taps.elements[box, count, 0] = pixel
    put(value_at(taps, box, count), weight)
    return count + 1
