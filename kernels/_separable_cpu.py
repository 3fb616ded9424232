"""Products of maps with sparse matrices along both axes, box by box, on the CPU.

A box's bins (P, Q) and its pixels (h, w) on a map are related by ``bins = Wy pixels Wxᵀ`` in each
channel: ``pool`` computes that, ``spread`` its transpose ``Wyᵀ bins Wx``. The matrices have few
non-zero elements and serve all channels. Vectors run along the rows of channels-first maps and over
the channels of channels-last ones.
"""

from typing import NamedTuple

import numpy as np
import torch

from ._blocks import (
    copy_in,
    copy_in_transposed,
    copy_out,
    copy_out_transposed,
    padded,
    read,
)
from ._elements import load_as_float, store_as
from ._jit import inline, jit
from ._layouts import DTYPE_CODES, layout
from ._memory import empty
from ._rois import memory_format
from ._threads import parallel_for
from ._transposition import load_transposed
from ._vectors import LANES, broadcast, fma, get, get_int, keep

__all__ = ["Taps", "empty_taps", "pool", "spread", "transpose", "value_at"]

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
GROUP = 64
"""Channels that go together in channels-last maps."""
BOXES = 16
"""Boxes of a task of ``pool``."""
CACHE = 2**20
"""Bytes of the maps of a task."""
GRAIN = 2**15
"""Fewest elements worth a thread."""
TABLES = 256
"""Fewest boxes whose matrices are worth a thread."""


class Taps(NamedTuple):
    """The matrices of all boxes along one axis, by compressed rows.

    The box n covers pixels ``first[n]`` to ``first[n] + count[n] - 1``. Row i of its matrix has the
    elements ``start[n, i] <= k < start[n, i + 1]``: ``elements[n, k, 0]`` is the column of one, the
    first half of ``elements[n, k, 1]`` its value, a float. Rows are bins and columns are pixels,
    counted from the first, or the other way round.
    """

    first: np.ndarray
    count: np.ndarray
    start: np.ndarray
    elements: np.ndarray


def empty_taps(boxes: int, rows: int, capacity: int) -> Taps:
    """Room for matrices of at most ``rows`` rows and ``capacity`` elements."""
    return Taps(
        np.empty(boxes, np.int64),
        np.empty(boxes, np.int64),
        np.empty((boxes, rows + 1), np.int64),
        np.empty((boxes, capacity, 2), np.int64),
    )


def transpose(taps: Taps, bins: int, side: int, to_pixels: bool) -> Taps:
    """Transposed matrices, with a row for each pixel or for each of ``bins`` bins."""
    boxes, capacity, _ = taps.elements.shape
    result = empty_taps(boxes, side if to_pixels else bins, capacity)
    parallel_for(_transpose, boxes, taps, bins, to_pixels, result, min_chunk=TABLES)
    return result


def pool(
    x: torch.Tensor, maps: np.ndarray, ys: Taps, xs: Taps, bins: tuple[int, int], last: bool
) -> torch.Tensor:
    """``Wy x Wxᵀ`` for each box.

    Args:
        x: Maps, (B, C, H, W).
        maps: Map of each box, (R,), int64; not looked at for boxes without pixels.
        ys: Matrices Wy, a row for each of ``bins[0]`` bins.
        xs: Matrices Wx, a row for each of ``bins[1]`` bins.
        bins: Bins along the axes.
        last: Whether ``x`` is, and the result is to be, channels last.

    Returns:
        (R, C, *bins).
    """
    if x.stride(1 if last else 3) != 1:
        x = x.contiguous(memory_format=memory_format(last))
    boxes, channels = len(maps), x.shape[1]
    out = empty(boxes, channels, *bins, dtype=x.dtype, memory_format=memory_format(last))
    tasks = -(-boxes // BOXES)
    depth = GROUP if last else _planes(x.shape, bins[0])
    size = BOXES * (channels if last else depth) * bins[0] * bins[1]
    parallel_for(
        _pool_pixels if last else _pool_planes,
        tasks if last else tasks * -(-channels // depth),
        maps,
        ys,
        xs,
        bins,
        channels,
        depth,
        x.shape[3],
        layout(x),
        out.data_ptr(),
        min_chunk=-(-GRAIN // max(size, 1)),
    )
    return out


def spread(
    values: torch.Tensor, maps: np.ndarray, ys: Taps, xs: Taps, shape: tuple[int, ...], last: bool
) -> torch.Tensor:
    """The sum of ``Wyᵀ values Wx`` over the boxes of each map.

    Every element of the result is summed by one thread, in the order of the boxes.

    Args:
        values: (R, C, P, Q).
        maps: Map of each box, (R,), int64; boxes of none of the maps are left out.
        ys: Matrices Wyᵀ, a row for each pixel.
        xs: Matrices Wxᵀ, a row for each pixel.
        shape: Shape (B, C, H, W) of the result.
        last: Whether the result is to be channels last.
    """
    values = values.contiguous(memory_format=memory_format(last))
    out = empty(*shape, dtype=values.dtype, memory_format=memory_format(last))
    bins = tuple(values.shape[2:])
    order = np.argsort(maps, kind="stable")
    offsets = np.searchsorted(maps[order], np.arange(shape[0] + 1))
    depth = GROUP if last else _planes(shape, bins[0])
    size = depth * (shape[2] * shape[3] + len(maps) * bins[0] * bins[1] // max(shape[0], 1))
    parallel_for(
        _spread_pixels if last else _spread_planes,
        shape[0] * -(-shape[1] // depth),
        order,
        offsets,
        ys,
        xs,
        bins,
        tuple(shape[1:]),
        depth,
        DTYPE_CODES[values.dtype],
        values.data_ptr(),
        out.data_ptr(),
        min_chunk=-(-GRAIN // max(size, 1)),
    )
    return out


def _planes(shape: tuple[int, ...], rows: int) -> int:
    """Channels of a task: maps that stay in the second-level cache, and rows for the lanes."""
    return min(max(CACHE // (4 * shape[2] * shape[3]), -(-LANES // rows), 1), LANES)


@jit
def _transpose(begin, end, taps, bins, to_pixels, result):
    place = np.empty(result.start.shape[1], np.int64)
    for box in range(begin, end):
        pixels = taps.count[box]
        rows, columns = (bins, pixels) if to_pixels else (pixels, bins)
        result.first[box], result.count[box] = taps.first[box], pixels
        place[: columns + 1] = 0
        for k in range(taps.start[box, rows]):
            place[taps.elements[box, k, 0] + 1] += 1
        for column in range(columns):
            place[column + 1] += place[column]
        for column in range(columns + 1):
            result.start[box, column] = place[column]
        for row in range(rows):
            for k in range(taps.start[box, row], taps.start[box, row + 1]):
                column = taps.elements[box, k, 0]
                result.elements[box, place[column], 0] = row
                result.elements[box, place[column], 1] = taps.elements[box, k, 1]
                place[column] += 1


@inline
def _element_at(taps, box, element):
    """Address of an element: its column, and then its value."""
    return taps.elements.ctypes.data + 16 * (box * taps.elements.shape[1] + element)


@inline
def value_at(taps, box, element):
    """Address of an element's value, which is a float."""
    return _element_at(taps, box, element) + 8


@inline
def _row(taps, box, row):
    """Addresses of the first element of a row and of that behind the last."""
    first, end = taps.start[box, row], taps.start[box, row + 1]
    return _element_at(taps, box, first), _element_at(taps, box, end)


@jit
def _combine(row, dtype, source, step, stride, vectors, target, target_stride, count, accumulate):
    """Combines vectors by a row of a matrix.

    ``target_i = Σ_k value_k source_(i, k)`` for ``vectors`` vectors i, with the source at
    ``source + i stride + column_k step`` and the target at ``target + i target_stride``, the first
    in a dtype and the second in floats, both of ``count`` elements, or 16 if that is less.
    """
    first, last = row
    zero = broadcast(np.float32(0))
    i = 0
    while i < vectors:
        place, out = source + i * stride, target + i * target_stride
        a = b = c = d = zero
        if vectors - i >= 4:
            for at in range(first, last, 16):
                value = broadcast(get(at + 8))
                start = place + get_int(at) * step
                a = fma(value, read(dtype, start, count), a)
                b = fma(value, read(dtype, start + stride, count), b)
                c = fma(value, read(dtype, start + 2 * stride, count), c)
                d = fma(value, read(dtype, start + 3 * stride, count), d)
            _put(out, a, count, accumulate)
            _put(out + target_stride, b, count, accumulate)
            _put(out + 2 * target_stride, c, count, accumulate)
            _put(out + 3 * target_stride, d, count, accumulate)
            i += 4
        else:
            for at in range(first, last, 16):
                start = place + get_int(at) * step
                a = fma(broadcast(get(at + 8)), read(dtype, start, count), a)
            _put(out, a, count, accumulate)
            i += 1


@inline
def _put(target, value, count, accumulate):
    if accumulate:
        value = value + load_as_float(0, target, count)
    store_as(0, target, value, count)


@jit
def _pool_planes(begin, end, maps, ys, xs, bins, channels, depth, width, x, out):
    boxes = len(maps)
    chunks = (boxes + BOXES - 1) // BOXES
    rows, columns = bins
    dtype, source, by_map, by_channel, by_row, _ = x
    size = 4 if dtype == 0 else 2
    lines = padded(depth * rows)
    scratch = np.zeros(lines * (2 * padded(width) + padded(columns)), np.float32)
    across = scratch.ctypes.data
    down = across + 4 * lines * padded(width)
    pooled = down + 4 * lines * padded(width)
    for task in range(begin, end):
        block, chunk = divmod(task, chunks)
        planes = min(depth, channels - block * depth)
        lines = planes * rows
        for box in range(chunk * BOXES, min(chunk * BOXES + BOXES, boxes)):
            wide = xs.count[box]
            row_size = 4 * padded(wide)
            origin = source + maps[box] * by_map + block * depth * by_channel
            origin += ys.first[box] * by_row + xs.first[box] * size
            for row in range(rows):
                taps = _row(ys, box, row)
                for j in range(0, wide, LANES):
                    _combine(
                        taps,
                        dtype,
                        origin + j * size,
                        by_row,
                        by_channel,
                        planes,
                        across + row * row_size + 4 * j,
                        rows * row_size,
                        wide - j,
                        False,
                    )
            # A lane is a row of bins of a channel.
            for line in range(0, lines, LANES):
                for j in range(0, wide, LANES):
                    place = across + line * row_size + 4 * j
                    load_transposed(
                        FLOAT, place, row_size, LANES, LANES, down + line * row_size + 64 * j, 64
                    )
            for column in range(columns):
                _combine(
                    _row(xs, box, column),
                    FLOAT,
                    down,
                    64,
                    LANES * row_size,
                    (lines + LANES - 1) // LANES,
                    pooled + 64 * column,
                    64 * padded(columns),
                    LANES,
                    False,
                )
            result = out + (box * channels + block * depth) * rows * columns * size
            for line in range(0, lines, LANES):
                lanes = min(LANES, lines - line)
                place = pooled + 4 * line * padded(columns)
                target = result + line * columns * size
                copy_out_transposed(dtype, place, 64, lanes, columns, target, columns * size)
    keep(scratch)


@jit
def _pool_pixels(begin, end, maps, ys, xs, bins, channels, depth, width, x, out):
    rows, columns = bins
    dtype, source, by_map, _, by_row, by_column = x
    size = 4 if dtype == 0 else 2
    scratch = np.empty(GROUP * (width + columns), np.float32)
    across = scratch.ctypes.data
    pooled = across + 4 * GROUP * width
    used = np.empty(width, np.int64)
    seen = np.empty(width, np.bool_)
    for box in range(begin * BOXES, min(end * BOXES, len(maps))):
        seen[: xs.count[box]] = False
        count = 0
        for k in range(xs.start[box, columns]):
            column = xs.elements[box, k, 0]
            if not seen[column]:
                seen[column] = True
                used[count] = column
                count += 1
        origin = source + maps[box] * by_map
        origin += ys.first[box] * by_row + xs.first[box] * by_column
        result = out + box * rows * columns * channels * size
        channel = 0
        while channel < channels:
            # Whole vectors, or the last one.
            vectors = max(min(channels - channel, GROUP) // LANES, 1)
            lanes = min(channels - channel, LANES)
            for row in range(rows):
                taps = _row(ys, box, row)
                for i in range(count):
                    _combine(
                        taps,
                        dtype,
                        origin + used[i] * by_column + channel * size,
                        by_row,
                        LANES * size,
                        vectors,
                        across + 4 * GROUP * used[i],
                        64,
                        lanes,
                        False,
                    )
                for column in range(columns):
                    _combine(
                        _row(xs, box, column),
                        FLOAT,
                        across,
                        4 * GROUP,
                        64,
                        vectors,
                        pooled + 4 * GROUP * column,
                        64,
                        lanes,
                        False,
                    )
                place = result + (row * columns * channels + channel) * size
                wide = LANES * (vectors - 1) + lanes
                copy_out(dtype, pooled, 4 * GROUP, columns, wide, place, channels * size)
            channel += LANES * vectors
    keep(scratch)


@jit
def _spread_planes(begin, end, order, offsets, ys, xs, bins, shape, depth, dtype, values, out):
    channels, height, width = shape
    rows, columns = bins
    size = 4 if dtype == 0 else 2
    blocks = (channels + depth - 1) // depth
    lines = padded(depth * rows)
    scratch = np.zeros(lines * (2 * padded(width) + padded(columns)), np.float32)
    across = scratch.ctypes.data
    down = across + 4 * lines * padded(width)
    binned = down + 4 * lines * padded(width)
    area = height * width
    sums = np.empty(depth * area if dtype != 0 else 1, np.float32)
    for task in range(begin, end):
        index, block = divmod(task, blocks)
        planes = min(depth, channels - block * depth)
        lines = planes * rows
        result = out + (index * channels + block * depth) * area * size
        total = result if dtype == 0 else sums.ctypes.data
        _clear(total, planes * area)
        for k in range(offsets[index], offsets[index + 1]):
            box = order[k]
            wide = xs.count[box]
            row_size = 4 * padded(wide)
            given = values + (box * channels + block * depth) * rows * columns * size
            # A lane is a row of bins of a channel.
            for line in range(0, lines, LANES):
                lanes = min(LANES, lines - line)
                place = given + line * columns * size
                target = binned + 4 * line * padded(columns)
                copy_in_transposed(dtype, place, columns * size, lanes, columns, target, 64)
            for j in range(wide):
                _combine(
                    _row(xs, box, j),
                    FLOAT,
                    binned,
                    64,
                    64 * padded(columns),
                    (lines + LANES - 1) // LANES,
                    down + 64 * j,
                    LANES * row_size,
                    LANES,
                    False,
                )
            for line in range(0, lines, LANES):
                for j in range(0, wide, LANES):
                    place = down + line * row_size + 64 * j
                    load_transposed(
                        FLOAT, place, 64, LANES, LANES, across + line * row_size + 4 * j, row_size
                    )
            origin = total + 4 * (ys.first[box] * width + xs.first[box])
            for i in range(ys.count[box]):
                if ys.start[box, i] == ys.start[box, i + 1]:
                    continue
                for j in range(0, wide, LANES):
                    _combine(
                        _row(ys, box, i),
                        FLOAT,
                        across + 4 * j,
                        row_size,
                        rows * row_size,
                        planes,
                        origin + 4 * (i * width + j),
                        4 * area,
                        wide - j,
                        True,
                    )
        if dtype != 0:
            copy_out(dtype, total, 0, 1, planes * area, result, 0)
    keep(scratch)
    keep(sums)


@jit
def _spread_pixels(begin, end, order, offsets, ys, xs, bins, shape, depth, dtype, values, out):
    channels, height, width = shape
    rows, columns = bins
    size = 4 if dtype == 0 else 2
    blocks = (channels + depth - 1) // depth
    wide_row = 4 * padded(depth)
    scratch = np.empty(padded(depth) * (rows * width + columns), np.float32)
    across = scratch.ctypes.data
    binned = across + wide_row * rows * width
    area = height * width
    sums = np.empty(padded(depth) * area if dtype != 0 else 1, np.float32)
    for task in range(begin, end):
        index, block = divmod(task, blocks)
        here = min(depth, channels - block * depth)
        result = out + (index * area * channels + block * depth) * size
        total, by_column = result, 4 * channels
        if dtype != 0:
            total, by_column = sums.ctypes.data, wide_row
        for pixel in range(area):
            _clear(total + pixel * by_column, here)
        for k in range(offsets[index], offsets[index + 1]):
            box = order[k]
            given = values + (box * rows * columns * channels + block * depth) * size
            origin = total + (ys.first[box] * width + xs.first[box]) * by_column
            vectors = padded(here) // LANES
            for row in range(rows):
                place = given + row * columns * channels * size
                copy_in(dtype, place, channels * size, columns, here, binned, wide_row)
                for j in range(xs.count[box]):
                    target = across + (row * width + j) * wide_row
                    taps = _row(xs, box, j)
                    _combine(taps, FLOAT, binned, wide_row, 64, vectors, target, 64, LANES, False)
            for i in range(ys.count[box]):
                if ys.start[box, i] == ys.start[box, i + 1]:
                    continue
                taps = _row(ys, box, i)
                for j in range(xs.count[box]):
                    if xs.start[box, j] < xs.start[box, j + 1]:
                        place = origin + (i * width + j) * by_column
                        source, step = across + j * wide_row, width * wide_row
                        whole = here // LANES
                        _combine(taps, FLOAT, source, step, 64, whole, place, 64, LANES, True)
                        if here % LANES:
                            _combine(
                                taps,
                                FLOAT,
                                source + 64 * whole,
                                step,
                                64,
                                1,
                                place + 64 * whole,
                                64,
                                here % LANES,
                                True,
                            )
        if dtype != 0:
            copy_out(dtype, total, wide_row, area, here, result, channels * size)
    keep(scratch)
    keep(sums)


@jit
def _clear(target, count):
    zero = broadcast(np.float32(0))
    for i in range(0, count, LANES):
        store_as(0, target + 4 * i, zero, count - i)
