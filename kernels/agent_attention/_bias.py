"""Biases of agent attention on the CPU: put together from their parts, and taken apart again.

A bias is dense, or the sum of a row's, a column's and a small block resized to the map, behind a
prefix. The bias of a block of tokens is put together in scratch memory; its gradient is added to
sums of the parts.
"""

from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from numba import types

from .._blocks import clear, copy_in, copy_in_transposed, padded
from .._elements import store_as
from .._jit import inline, integers, jit, part
from .._layouts import layout
from .._vectors import LANES, broadcast, get, load, load_lanes, put, store
from ._matrices import FLOAT, ONE, Sums, product
from .reference import interpolation_weights

ABSENT, DENSE, IN_PARTS = 0, 1, 2
"""Kinds of bias."""
BLOCK = 2
"""Which of the parts is the block."""
NONE = (0,) * 5
"""Layout of a part that there is not."""


BIAS = types.Tuple((integers(7), integers(3), *(integers(5),) * 4, integers(7)))
SUMS, RANGE = integers(4), integers(2)


def bias_arguments(parts, tokens, count, block):
    """A bias as kernels take it, and what must outlive them.

    The former is kind and sizes, a matrix of each part, and where scratch memory has what.
    """
    sizes, taps, places, owner = _bias_plan(_shapes(parts), tokens, count, block)
    matrices = [x if x is None else _as_matrices(x) for x in parts]
    layouts = [NONE if x is None else layout(x) for x in matrices]
    return (sizes, taps, *layouts, places), (matrices, owner)


def _shapes(parts):
    return tuple([x if x is None else x.shape for x in parts])


@lru_cache(1024)
def _bias_plan(shapes, tokens, count, block):
    """Of parts of these shapes: kind and sizes, taps, places, and what must outlive the taps."""
    rows, columns, resized, prefix = shapes
    height = width = h = w = before = 0
    kind, taps = (ABSENT if resized is None else DENSE), ()
    if rows is not None:
        height, width = rows[2], columns[2]
        h, w = (0, 0) if resized is None else resized[2:]
        before = 0 if prefix is None else prefix[2]
        kind, taps = IN_PARTS, _resizing((h, w), (height, width))
    sizes = kind, tokens, height, width, h, w, before
    places = _bias_places(kind, height, width, h, w, before, count, block)
    return sizes, tuple(x.ctypes.data for x in taps) or (0, 0, 0), places, taps


def _bias_places(kind, height, width, h, w, before, count, block):
    """Where scratch memory has a head's bias and work on it, in bytes, and its size.

    Rows (agents, H), columns (agents, W), the block (h, agents, w), the prefix (agents, P), as many
    lines (lines, agents, w) of the vertically resized block as tokens worked on at once touch, and
    the block as it is given, (agents, h * w).
    """
    if kind != IN_PARTS:
        return (0,) * 7
    line = padded.py_func(count) * _narrow(w)
    matrices = (padded.py_func(count) * padded.py_func(x) for x in (height, width, before, h * w))
    rows, columns, prefix, matrix = (x + LANES for x in matrices)
    floats = rows, columns, h * line, prefix, (block // width + 2) * line, matrix
    return (0, *(4 * x for x in accumulate(floats)))


def _narrow(w):
    """Floats of an agent's line of the block, and of the row's bias behind it."""
    return padded.py_func(w + 1)


def _as_matrices(x):
    """A bias part as (heads, agents, tokens), contiguous in agents or tokens."""
    x = x.flatten(2) if x.ndim > 3 else x
    return x if 1 in x.stride()[1:] else x.contiguous()


@lru_cache(256)
def _resizing(block, size):
    """Bilinear interpolation: weights (H, h), (w + 1, W) and (W, w + 1), with ones in the end.

    The last two are in rows of whole vectors; the first of them has one to spare.
    """
    if 0 in block:
        y, x = (torch.zeros(0, side, dtype=torch.float32, device="cpu") for side in size)
    else:
        y, x = (interpolation_weights(*sides, "cpu") for sides in zip(block, size, strict=True))
    x = F.pad(x, (0, 0, 0, 1), value=1.0)
    wide, narrow = (F.pad(x, (0, -x.shape[1] % LANES + LANES)), F.pad(x.T, (0, -len(x) % LANES)))
    return tuple(np.ascontiguousarray(m) for m in (y.T, wide, narrow))


def bias_sums(parts, split):
    """Sums of the gradients of a bias's parts that tasks leave, and bytes from each to the next.

    Of parts that are absent there are none.
    """
    return _plan_sums(_shapes(parts), split.groups, split.groups * split.chunks)


@lru_cache(1024)
def _plan_sums(shapes, groups, tasks):
    sums = []
    in_parts = shapes[0] is not None
    for place, shape in enumerate(shapes):
        if shape is None:
            sums.append(None)
            continue
        heads, count, *_, columns = shape
        if in_parts and place == BLOCK:
            height, agent = shape[2], 4 * _narrow(columns)
            rows, strides = (heads, count, height), (height * count * agent, agent, count * agent)
        else:
            rows, strides = (heads * count, 1, 1), (4 * columns, 0, 0)
        parts, size = (tasks if in_parts else groups), rows[0] * strides[0]
        sums.append(Sums(parts, size, rows, strides, columns))
    return tuple(sums), tuple([0 if x is None else x.parts * x.by_part for x in sums])


@inline
def _line(bias):
    """Bytes of an agent's line of the block, and of the row's bias behind it."""
    return 4 * padded(bias[0][5] + 1)


@jit
def _matrix_in(x, head, count, first, tokens, target, target_row):
    """Copies a bias part, (agents, tokens) from a token on, to floats."""
    dtype, address, by_head, by_agent, by_token = x
    source = address + head * by_head + first * by_token
    if by_token == (4 if dtype == FLOAT else 2):
        copy_in(dtype, source, by_agent, count, tokens, target, target_row)
    else:
        copy_in_transposed(dtype, source, by_token, tokens, count, target, target_row)


@jit
def _parts_in(bias, head, count, memory):
    sizes, _, rows, columns, resized, prefix, places = bias
    kind, _, height, width, h, w, before = sizes
    if kind == IN_PARTS:
        _matrix_in(rows, head, count, 0, height, memory, 4 * padded(height))
        _matrix_in(columns, head, count, 0, width, memory + places[1], 4 * padded(width))
        _matrix_in(prefix, head, count, 0, before, memory + places[3], 4 * padded(before))
        matrix, row = memory + places[5], 4 * padded(h * w)
        _matrix_in(resized, head, count, 0, h * w, matrix, row)
        for y in range(h):
            target = memory + places[2] + y * count * _line(bias)
            copy_in(FLOAT, matrix + 4 * y * w, row, count, w, target, _line(bias))


@part
def bias_in(bias: BIAS, heads: RANGE, count, memory):
    """Copies the parts of the biases of heads, the first and how many, to scratch memory."""
    for h in range(heads[1]):
        _parts_in(bias, heads[0] + h, count, memory + h * bias[6][-1])


@inline
def _lines(begin, end, width):
    """First and last line of the map with tokens from ``begin`` to ``end``; none are negative."""
    return max(begin, 0) // width, (max(end, 0) + width - 1) // width


@jit
def _put_together(bias, count, first, tokens, memory, target, row):
    """Bias (agents, tokens) of a block of tokens from that of rows, columns, block and prefix."""
    _, _, height, width, h, w, before = bias[0]
    taps_y, taps_x, _ = bias[1]
    _, columns, resized, prefix, at_lines, _, _ = bias[6]
    agent, column_row, tap_row = _line(bias), 4 * padded(width), 4 * padded(width + LANES)
    line, at_lines = count * agent, memory + at_lines
    begin, end = first - before, first - before + tokens
    top, bottom = _lines(begin, end, width)
    for i in range(count):
        for j in range(first, min(before, first + tokens)):
            value = get(memory + prefix + 4 * (i * padded(before) + j))
            put(target + i * row + 4 * (j - first), value)
    if w > 0:
        left, right = (taps_y + 4 * top * h, 4 * h, 4), (memory + resized, line)
        product(bottom - top, line // 64, h, left, right, (at_lines, line), ONE, False)
    for y in range(top, bottom):
        at_line = at_lines + (y - top) * line
        start, stop = max(begin - y * width, 0), min(end - y * width, width)
        # Vectors that reach over the end of a line are followed by those of the next line.
        place, source = target + 4 * (y * width + start - begin), memory + columns + 4 * start
        for i in range(count):
            put(at_line + i * agent + 4 * w, get(memory + 4 * (i * padded(height) + y)))
            for x in range(0, 4 * (stop - start), 64):
                store(place + i * row + x, load(source + i * column_row + x))
        left, right = (at_line, agent, 4), (taps_x + 4 * start, tap_row)
        vectors = padded(stop - start) // LANES
        product(count, vectors, w + 1, left, right, (place, row), ONE, True)


@jit
def _fill_of_head(bias, head, count, first, tokens, fill, memory, target, row):
    kind = bias[0][0]
    if kind == ABSENT:
        clear(target, count * row // 4)
    elif kind == DENSE:
        _matrix_in(bias[4], head, count, first, tokens, target, row)
    else:
        _put_together(bias, count, first, tokens, memory, target, row)
    if tokens % LANES > 0:
        for i in range(count):
            store(target + i * row + 4 * tokens, broadcast(fill))


@part
def fill_bias(
    bias: BIAS, heads: RANGE, count, first, tokens, fill: types.float32, memory, target, row
):
    """Puts the biases of heads together, of all agents and a block of tokens, which ``fill``
    follows."""
    for h in range(heads[1]):
        own, place = memory + h * bias[6][-1], target + h * padded(count) * row
        _fill_of_head(bias, heads[0] + h, count, first, tokens, fill, own, place, row)


@jit
def _clear_floats(target, count):
    for i in range(0, count, LANES):
        store_as(FLOAT, target + 4 * i, broadcast(np.float32(0)), count - i)


@part
def clear_bias_sums(bias: BIAS, sums: SUMS, index, count):
    """Clears the sums of the gradient of bias parts of the ``index``-th task and head."""
    kind, _, height, width, h, _, before = bias[0]
    if kind == IN_PARTS:
        area = h * _line(bias) // 4
        _clear_floats(sums[0] + 4 * index * count * height, count * height)
        _clear_floats(sums[1] + 4 * index * count * width, count * width)
        _clear_floats(sums[2] + 4 * index * count * area, count * area)
        _clear_floats(sums[3] + 4 * index * count * before, count * before)


@part
def add_to_bias_sums(bias: BIAS, sums: SUMS, index, count, first, tokens, memory, grad, row):
    """Adds the gradient (agents, tokens) of a block of bias to the sums of its parts."""
    _, _, height, width, h, w, before = bias[0]
    taps_y, _, taps_x = bias[1]
    agent, at_lines = _line(bias), memory + bias[6][4]
    line = count * agent
    begin, end = first - before, first - before + tokens
    top, bottom = _lines(begin, end, width)
    for i in range(count):
        for j in range(first, min(before, first + tokens)):
            place = sums[3] + 4 * ((index * count + i) * before + j)
            put(place, get(grad + i * row + 4 * (j - first)))
    for y in range(top, bottom):
        at_line = at_lines + (y - top) * line
        start, stop = max(begin - y * width, 0), min(end - y * width, width)
        place, target = grad + 4 * (y * width + start - begin), sums[1] + 4 * start
        # The horizontally resized line and, by weights of one, the sum of each agent.
        left, right = (place, row, 4), (taps_x + start * agent, agent)
        product(count, agent // 64, stop - start, left, right, (at_line, agent), ONE, False)
        for i in range(count):
            at_row = sums[0] + 4 * ((index * count + i) * height + y)
            put(at_row, get(at_row) + get(at_line + i * agent + 4 * w))
            for x in range(0, stop - start, LANES):
                column = target + 4 * ((index * count + i) * width + x)
                value = load_lanes(column, stop - start - x)
                value = value + load_lanes(place + i * row + 4 * x, stop - start - x)
                store_as(FLOAT, column, value, stop - start - x)
    if w > 0:
        left, right = (taps_y + 4 * top * h, 4, 4 * h), (at_lines, line)
        out = sums[2] + index * h * line
        product(h, line // 64, bottom - top, left, right, (out, line), ONE, True)
