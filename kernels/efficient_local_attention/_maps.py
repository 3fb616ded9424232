"""Sums of maps along both axes and products with gates, and their gradients, for Numba kernels.

Maps are planes, one channel behind the other, or have all channels of a position in a row; strips
are blocks of 16 channels with a vector a position. Every function takes

    form: Code of the map's dtype, and bytes from row to row and from column to column.
    layout: Height and width, first row of the H strip and of the W strip in a block of strips,
        and bytes of a block.
    count: Channels.

Maps of other dtypes than float32 are copied to floats a few rows at a time.
"""

import numpy as np
from numba import types

from .._blocks import (
    clear,
    copy_in,
    copy_in_transposed,
    copy_out,
    copy_out_transposed,
    padded,
    scale_row,
)
from .._elements import store_as
from .._jit import inline, integers, jit, part
from .._reductions import put_sums_of_lanes
from .._vectors import F32, LANES, REGISTER, fma, load, load_lanes
from ._rows import (
    MOST,
    gate_rows,
    stream,
    sum_both_ways,
    sum_positions,
    weigh_positions,
    weigh_rows,
)

__all__ = [
    "divide",
    "gate_lanes",
    "gate_planes",
    "sum_lanes",
    "sum_lanes_gradient",
    "sum_planes",
    "sum_planes_gradient",
    "work_size",
]

FLOAT = 0
"""Code of float32 for the functions of ``_blocks``."""
VECTOR = LANES * F32
FORM, LAYOUT = integers(3), integers(5)
SLAB = 16384
"""Bytes of floats that are worked on while they are in the first-level cache."""


def work_size(chunk, height, width):
    """Floats of working memory for maps of a size."""
    high, wide = (-(-side // LANES) * LANES for side in (height, width))
    plane = height * width
    slab = max(SLAB // F32, plane)
    rows = max(SLAB // (plane * F32), 1) * height
    by_lanes = (rows + REGISTER) * REGISTER
    planes = LANES * (3 * high + 4 * wide + 1) + by_lanes + 2 * slab
    return max(planes, 2 * width * (-(-chunk // LANES) * LANES)) + LANES


@inline
def _size(code):
    return 4 if code == FLOAT else 2


@inline
def _blocks(count):
    return (count + LANES - 1) // LANES


@jit
def _floats(code, source, row, rows, columns, target, target_row):
    """Rows as floats, where they are or copied: their address and the bytes from row to row."""
    if code == FLOAT:
        return source, row
    copy_in(code, source, row, rows, columns, target, target_row)
    return target, target_row


@jit
def divide(z, count, layout):
    """Turns sums of either strip to means."""
    height, width, top, left, column = layout
    for n in range(_blocks(count)):
        place = z + n * column
        scale_row(place + top * VECTOR, height * LANES, np.float32(1 / width))
        scale_row(place + left * VECTOR, width * LANES, np.float32(1 / height))


@jit
def _sum_lanes_of(registers, count, target):
    """Writes the sum of the lanes of each register, as many at a time as one has lanes.

    There is memory for those that this reads and writes beyond the last one.
    """
    for i in range(0, count, REGISTER):
        put_sums_of_lanes(target + i * F32, registers + i * REGISTER * F32)


@part
def sum_planes(form: FORM, x, count, layout: LAYOUT, z, work):
    """Strip means of planes."""
    height, width, top, left, column = layout
    code, _, _ = form
    plane, side = height * width, padded(width) * F32
    step = max(SLAB // (plane * F32), 1)
    rows = work
    columns = rows + (height + 1) * VECTOR
    by_lanes = columns + LANES * side
    slab = by_lanes + (step * height + REGISTER) * REGISTER * F32
    for n in range(0, count, LANES):
        planes = min(count - n, LANES)
        for p in range(0, planes, step):
            some = min(step, planes - p)
            source = x + (n + p) * plane * _size(code)
            source, _ = _floats(code, source, 0, 1, some * plane, slab, 0)
            for k in range(some):
                for j in range(0, width, MOST):
                    sum_both_ways(
                        source + (k * plane + j) * F32,
                        width * F32,
                        height,
                        min(width - j, MOST),
                        columns + (p + k) * side + j * F32,
                        by_lanes + k * height * REGISTER * F32,
                        j > 0,
                    )
            _sum_lanes_of(by_lanes, some * height, rows + p * height * F32)
        target = z + n // LANES * column
        copy_in_transposed(FLOAT, rows, height * F32, planes, height, target + top * VECTOR, VECTOR)
        copy_in_transposed(FLOAT, columns, side, planes, width, target + left * VECTOR, VECTOR)
    divide(z, count, layout)


@jit
def _stream_out(source, count, target):
    """Copies floats past the caches, but for those in the first and last line."""
    first = min(-target % VECTOR // F32, count)
    store_as(FLOAT, target, load_lanes(source, first), first)
    for i in range(first, count - LANES + 1, LANES):
        stream(target + i * F32, load(source + i * F32))
    last = count - (count - first) % LANES
    store_as(
        FLOAT, target + last * F32, load_lanes(source + last * F32, count - last), count - last
    )


@jit
def _take_out(block, planes, layout, rows, columns):
    """Copies a block of both strips to a row a channel."""
    height, width, top, left, _ = layout
    high, wide = padded(height) * F32, padded(width) * F32
    copy_out_transposed(FLOAT, block + top * VECTOR, VECTOR, planes, height, rows, high)
    copy_out_transposed(FLOAT, block + left * VECTOR, VECTOR, planes, width, columns, wide)


@part
def gate_planes(form: FORM, x, out, count, layout: LAYOUT, y, dz, work, streams: types.boolean):
    """Multiplies planes by their gates, and adds gradients ``dz`` of the means where given.

    Results past the caches where ``streams``.
    """
    height, width, top, left, column = layout
    code, _, _ = form
    plane = height * width
    high, wide = padded(height) * F32, padded(width) * F32
    rows, columns = work, work + LANES * high
    row_slopes, column_slopes = columns + LANES * wide, columns + LANES * (wide + high)
    slab = column_slopes + LANES * wide
    aligned = width % LANES == 0 and out % VECTOR == 0
    direct = code == FLOAT and (aligned or not streams)
    step = max(SLAB // (plane * F32), 1)
    for n in range(0, count, LANES):
        planes = min(count - n, LANES)
        _take_out(y + n // LANES * column, planes, layout, rows, columns)
        if dz > 0:
            _take_out(dz + n // LANES * column, planes, layout, row_slopes, column_slopes)
        for p in range(0, planes, step):
            some = min(step, planes - p)
            shift = (n + p) * plane * _size(code)
            source, _ = _floats(code, x + shift, 0, 1, some * plane, slab, 0)
            target = out + shift if direct else slab
            for k in range(some):
                for j in range(0, width, MOST):
                    place = (k * plane + j) * F32
                    gate_rows(
                        source + place,
                        target + place,
                        width * F32,
                        height,
                        min(width - j, MOST),
                        rows + (p + k) * high,
                        columns + (p + k) * wide + j * F32,
                        row_slopes + (p + k) * high,
                        column_slopes + (p + k) * wide + j * F32,
                        dz > 0,
                        streams and aligned,
                    )
            if code != FLOAT:
                copy_out(code, slab, 0, 1, some * plane, out + shift, 0)
            elif not direct:
                _stream_out(slab, some * plane, out + shift)


@jit
def _clear_strips(z, count, layout):
    height, width, top, left, column = layout
    for n in range(_blocks(count)):
        clear(z + n * column + top * VECTOR, height * LANES)
        clear(z + n * column + left * VECTOR, width * LANES)


@part
def sum_lanes(form: FORM, x, count, layout: LAYOUT, z, work):
    """Strip means where channels are contiguous."""
    height, width, top, left, column = layout
    code, x_row, x_column = form
    _clear_strips(z, count, layout)
    for i in range(height):
        source, step = _floats(
            code, x + i * x_row, x_column, width, count, work, padded(count) * F32
        )
        for n in range(0, count, MOST):
            block = z + n // LANES * column
            sum_positions(
                source + n * F32,
                step,
                width,
                min(count - n, MOST),
                block + (top + i) * VECTOR,
                block + left * VECTOR,
                column,
                x_row,
            )
    divide(z, count, layout)


@part
def gate_lanes(
    form: FORM, x, out_form: FORM, out, count, layout: LAYOUT, y, dz, work, streams: types.boolean
):
    """Multiplies by the gates where channels are contiguous; see ``gate_planes``."""
    height, width, top, left, column = layout
    code, x_row, x_column = form
    _, out_row, out_column = out_form
    wide = padded(count) * F32
    aligned = count % LANES == 0 and (out | out_row | out_column) % VECTOR == 0
    for i in range(height):
        source, step = _floats(code, x + i * x_row, x_column, width, count, work, wide)
        target, target_step = (out + i * out_row, out_column) if code == FLOAT else (work, wide)
        for j in range(width):
            row, other = (top + i) * VECTOR, (left + j) * VECTOR
            for n in range(0, count, LANES):
                value = load_lanes(source + n * F32, count - n)
                gate = load(y + row) * load(y + other)
                if dz > 0:
                    value = fma(value, gate, load(dz + row) + load(dz + other))
                else:
                    value = value * gate
                if streams and aligned:
                    stream(target + n * F32, value)
                else:
                    store_as(FLOAT, target + n * F32, value, count - n)
                row += column
                other += column
            source += step
            target += target_step
        if code != FLOAT:
            copy_out(code, work, wide, width, count, out + i * out_row, out_column)


@part
def sum_planes_gradient(form: FORM, x, grad, count, layout: LAYOUT, y, dy, work):
    """Gradients of the gates of planes."""
    height, width, top, left, column = layout
    code, _, _ = form
    plane = height * width
    high, side = padded(height) * F32, padded(width) * F32
    step = max(SLAB // (plane * F32), 1)
    row_gates, column_gates = work, work + LANES * high
    rows = column_gates + LANES * side
    columns = rows + (height + 1) * VECTOR
    by_lanes = columns + LANES * side
    slab = by_lanes + (step * height + REGISTER) * REGISTER * F32
    grad_slab = slab + max(SLAB, plane * F32)
    for n in range(0, count, LANES):
        planes = min(count - n, LANES)
        _take_out(y + n // LANES * column, planes, layout, row_gates, column_gates)
        for p in range(0, planes, step):
            some = min(step, planes - p)
            shift = (n + p) * plane * _size(code)
            source, _ = _floats(code, x + shift, 0, 1, some * plane, slab, 0)
            upstream, _ = _floats(code, grad + shift, 0, 1, some * plane, grad_slab, 0)
            for k in range(some):
                for j in range(0, width, MOST):
                    place = (k * plane + j) * F32
                    weigh_rows(
                        source + place,
                        upstream + place,
                        width * F32,
                        height,
                        min(width - j, MOST),
                        row_gates + (p + k) * high,
                        column_gates + (p + k) * side + j * F32,
                        columns + (p + k) * side + j * F32,
                        by_lanes + k * height * REGISTER * F32,
                        j > 0,
                    )
            _sum_lanes_of(by_lanes, some * height, rows + p * height * F32)
        target = dy + n // LANES * column
        copy_in_transposed(FLOAT, rows, height * F32, planes, height, target + top * VECTOR, VECTOR)
        copy_in_transposed(FLOAT, columns, side, planes, width, target + left * VECTOR, VECTOR)


@part
def sum_lanes_gradient(form: FORM, x, grad_form: FORM, grad, count, layout: LAYOUT, y, dy, work):
    """Gradients of the gates where channels are contiguous."""
    height, width, top, left, column = layout
    code, x_row, x_column = form
    _, grad_row, grad_column = grad_form
    wide = padded(count) * F32
    _clear_strips(dy, count, layout)
    for i in range(height):
        source, step = _floats(code, x + i * x_row, x_column, width, count, work, wide)
        upstream, upstream_step = _floats(
            code, grad + i * grad_row, grad_column, width, count, work + width * wide, wide
        )
        for n in range(0, count, MOST):
            shift = n // LANES * column
            row, other = shift + (top + i) * VECTOR, shift + left * VECTOR
            weigh_positions(
                source + n * F32,
                step,
                upstream + n * F32,
                upstream_step,
                width,
                min(count - n, MOST),
                y + row,
                y + other,
                dy + row,
                dy + other,
                column,
            )
