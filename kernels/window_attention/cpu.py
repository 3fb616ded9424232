"""Window attention on the CPU: one window of one head at a time, in the first-level cache."""

import numpy as np
import torch

from .._blocks import (
    DTYPE_CODES,
    add,
    clear,
    copy_in,
    copy_in_transposed,
    copy_out,
    exponentials,
    inner_product,
    multiply,
    padded,
    read,
    scale_row,
    softmax,
    softmax_gradient,
)
from .._jit import inline, jit
from .._simd import LANES, get, keep, load, put, store
from .._threads import parallel_for

ONE = np.float32(1)
GROUPS = 8
"""Partial sums of the bias gradient: as many whatever the number of threads, for equal results."""


def forward(q, k, v, bias, window, shift, scale):
    """Output (B, H, W, heads, dim) and log-sum-exp of the logits (B, heads, H, W)."""
    q, k, v, bias = _with_contiguous_rows(q, k, v, bias)
    batch, height, width, heads, _ = q.shape
    out = torch.empty(v.shape, dtype=v.dtype)
    lse = torch.empty(batch, heads, height, width)
    parallel_for(
        _forward_windows,
        batch * _windows(q, window) * heads,
        _geometry(q, window, shift),
        np.float32(scale),
        _layout(q),
        _layout(k),
        _layout(v),
        _bias_layout(bias),
        _layout(out),
        lse.data_ptr(),
    )
    return out, lse


def backward(grad, q, k, v, bias, out, lse, window, shift, scale):
    """Gradients of q, k, v and bias, the last one empty where there is no bias."""
    grad, q, k, v, bias = _with_contiguous_rows(grad, q, k, v, bias)
    batch, _, _, heads, _ = q.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    area = window[0] * window[1]
    windows = batch * _windows(q, window)
    groups = min(windows, GROUPS) if bias is not None else windows
    sums = torch.zeros(groups if bias is not None else 0, heads, area, -(-area // LANES) * LANES)
    parallel_for(
        _backward_windows,
        groups * heads,
        groups,
        _geometry(q, window, shift),
        np.float32(scale),
        _layout(q),
        _layout(k),
        _layout(v),
        _bias_layout(bias),
        _layout(out),
        lse.data_ptr(),
        _layout(grad),
        _layout(dq),
        _layout(dk),
        _layout(dv),
        sums.data_ptr(),
    )
    if bias is None:
        return dq, dk, dv, q.new_empty(0)
    return dq, dk, dv, sums.sum(0)[..., :area].to(bias.dtype).contiguous()


def _with_contiguous_rows(*tensors):
    return tuple(x if x is None or x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _windows(q, window):
    return -(-q.shape[1] // window[0]) * -(-q.shape[2] // window[1])


def _geometry(q, window, shift):
    return (*q.shape, *window, *shift)


def _layout(x):
    """Code of the dtype, address, and strides in bytes of batch, rows, columns and heads."""
    size = x.element_size()
    return DTYPE_CODES[x.dtype], x.data_ptr(), *(stride * size for stride in x.stride()[:4])


def _bias_layout(bias):
    """Code of the dtype, address (0 for none), and strides in bytes of heads and rows."""
    if bias is None:
        return 0, 0, 0, 0
    size = bias.element_size()
    return DTYPE_CODES[bias.dtype], bias.data_ptr(), bias.stride(0) * size, bias.stride(1) * size


@inline
def _origin(position, size, offset, length):
    """Row of the map at a row of the shifted, filled-up map, likewise columns; -1 for padding."""
    whole = (length + size - 1) // size * size
    source = (position + offset) % whole
    return source if source < length else -1


@inline
def _run(position, count, size, offset, length):
    """Column of the map at a position, and how many of the next ``count`` follow it on the map."""
    x = _origin(position, size, offset, length)
    run = 1
    while run < count and x >= 0 and _origin(position + run, size, offset, length) == x + run:
        run += 1
    return x, run


@jit
def _gather(layout, batch, head, top, left, geometry, target, target_row):
    """Copies the tokens (tokens, dim) of a window to floats; padding is zeros."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, height, width, _, dim, rows, columns, shift_y, shift_x = geometry
    address += batch * by_batch + head * by_head
    for i in range(rows):
        y = _origin(top + i, rows, shift_y, height)
        j = 0
        while j < columns:
            x, run = _run(left + j, columns - j, columns, shift_x, width)
            place = target + (i * columns + j) * target_row
            if y < 0 or x < 0:
                clear(place, run * target_row // 4)
            else:
                source = address + y * by_row + x * by_column
                copy_in(dtype, source, by_column, run, dim, place, target_row)
            j += run


@jit
def _scatter(layout, batch, head, top, left, geometry, source, source_row):
    """Copies floats (tokens, dim) to the tokens of a window; padding is dropped."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, height, width, _, dim, rows, columns, shift_y, shift_x = geometry
    address += batch * by_batch + head * by_head
    for i in range(rows):
        y = _origin(top + i, rows, shift_y, height)
        j = 0
        while j < columns:
            x, run = _run(left + j, columns - j, columns, shift_x, width)
            if y >= 0 and x >= 0:
                place = address + y * by_row + x * by_column
                source_at = source + (i * columns + j) * source_row
                copy_out(dtype, source_at, source_row, run, dim, place, by_column)
            j += run


@jit
def _penalties(top, left, geometry, labels, penalties, row):
    """Labels the regions of a window's tokens and writes, for each label, what it may not see.

    Tokens wrapped from the opposite border and those that were not are different regions, padding
    is one, too. Row i of ``penalties`` is added to the logits of queries of region i: -inf for keys
    of other regions.

    Returns:
        Whether the window has more than one region.
    """
    _, height, width, _, _, rows, columns, shift_y, shift_x = geometry
    first, mixed = np.float32(-1), False
    for i in range(rows):
        y = _origin(top + i, rows, shift_y, height)
        for j in range(columns):
            x = _origin(left + j, columns, shift_x, width)
            label = np.float32((2 if y < shift_y else 0) + (1 if x < shift_x else 0))
            if y < 0 or x < 0:
                label = np.float32(4)
            put(labels + 4 * (i * columns + j), label)
            first = label if first < 0 else first
            mixed = mixed or label != first
    if mixed:
        for label in range(5):
            for token in range(rows * columns):
                seen = get(labels + 4 * token) == np.float32(label)
                put(
                    penalties + label * row + 4 * token,
                    np.float32(0) if seen else np.float32(-np.inf),
                )
    return mixed


@jit
def _logits(bias, head, mixed, labels, penalties, tokens, s, row):
    """Adds the bias and the penalties to the logits (tokens, tokens) of a window."""
    dtype, address, by_head, by_row = bias
    size = 4 if dtype == 0 else 2
    if address != 0:
        for i in range(tokens):
            source = address + head * by_head + i * by_row
            for j in range(0, tokens, LANES):
                place = s + i * row + 4 * j
                store(place, load(place) + read(dtype, source + j * size, tokens - j))
    if mixed:
        for i in range(tokens):
            label = int(get(labels + 4 * i))
            add(penalties + label * row, row, 1, row // 4, s + i * row, row)


@inline
def _place(window, geometry):
    """Batch, and first row and column on the shifted map, of a window."""
    _, height, width, _, _, rows, columns, _, _ = geometry
    across = (width + columns - 1) // columns
    down = (height + rows - 1) // rows
    batch, index = divmod(window, down * across)
    return batch, index // across * rows, index % across * columns


@jit
def _forward_windows(begin, end, geometry, scale, q, k, v, bias, out, lse):
    _, height, width, heads, dim, rows, columns, shift_y, shift_x = geometry
    tokens = rows * columns
    wide, deep = padded(tokens), padded(dim)
    scratch = np.empty(3 * tokens * deep + deep * wide + (tokens + 6) * wide, np.float32)
    at_q = scratch.ctypes.data
    at_k = at_q + 4 * tokens * deep
    at_v = at_k + 4 * tokens * deep
    at_kt = at_v + 4 * tokens * deep
    at_s = at_kt + 4 * deep * wide
    labels = at_s + 4 * tokens * wide
    penalties = labels + 4 * wide
    row, s_row = 4 * deep, 4 * wide
    for task in range(begin, end):
        window, head = divmod(task, heads)
        batch, top, left = _place(window, geometry)
        _gather(q, batch, head, top, left, geometry, at_q, row)
        _gather(k, batch, head, top, left, geometry, at_k, row)
        _gather(v, batch, head, top, left, geometry, at_v, row)
        copy_in_transposed(0, at_k, row, tokens, dim, at_kt, s_row)
        multiply(tokens, wide // LANES, dim, at_q, row, 4, at_kt, s_row, at_s, s_row, scale, False)
        mixed = _penalties(top, left, geometry, labels, penalties, s_row)
        _logits(bias, head, mixed, labels, penalties, tokens, at_s, s_row)
        for i in range(tokens):
            largest, total = softmax(at_s + i * s_row, tokens)
            scale_row(at_s + i * s_row, wide, np.float32(1) / total)
            y = _origin(top + i // columns, rows, shift_y, height)
            x = _origin(left + i % columns, columns, shift_x, width)
            if y >= 0 and x >= 0:
                place = ((batch * heads + head) * height + y) * width + x
                put(lse + 4 * place, largest + np.log(total))
        multiply(tokens, deep // LANES, tokens, at_s, s_row, 4, at_v, row, at_q, row, ONE, False)
        _scatter(out, batch, head, top, left, geometry, at_q, row)
    keep(scratch)


@jit
def _backward_windows(
    begin, end, groups, geometry, scale, q, k, v, bias, out, lse, grad, dq, dk, dv, sums
):
    batches, height, width, heads, dim, rows, columns, shift_y, shift_x = geometry
    tokens = rows * columns
    wide, deep = padded(tokens), padded(dim)
    scratch = np.empty(7 * tokens * deep + deep * wide + (2 * tokens + 6) * wide, np.float32)
    size = 4 * tokens * deep
    at_q = scratch.ctypes.data
    at_k, at_v, at_out, at_grad = at_q + size, at_q + 2 * size, at_q + 3 * size, at_q + 4 * size
    at_x = at_q + 5 * size
    at_t = at_q + 6 * size
    at_p = at_t + 4 * deep * wide
    at_s = at_p + 4 * tokens * wide
    labels = at_s + 4 * tokens * wide
    penalties = labels + 4 * wide
    row, s_row, vectors = 4 * deep, 4 * wide, deep // LANES
    down, across = (height + rows - 1) // rows, (width + columns - 1) // columns
    windows = batches * down * across
    for task in range(begin, end):
        group, head = divmod(task, heads)
        total = sums + task * tokens * s_row
        for window in range(group * windows // groups, (group + 1) * windows // groups):
            batch, top, left = _place(window, geometry)
            _gather(q, batch, head, top, left, geometry, at_q, row)
            _gather(k, batch, head, top, left, geometry, at_k, row)
            _gather(v, batch, head, top, left, geometry, at_v, row)
            _gather(out, batch, head, top, left, geometry, at_out, row)
            _gather(grad, batch, head, top, left, geometry, at_grad, row)

            copy_in_transposed(0, at_k, row, tokens, dim, at_t, s_row)
            multiply(
                tokens, wide // LANES, dim, at_q, row, 4, at_t, s_row, at_p, s_row, scale, False
            )
            mixed = _penalties(top, left, geometry, labels, penalties, s_row)
            _logits(bias, head, mixed, labels, penalties, tokens, at_p, s_row)
            copy_in_transposed(0, at_v, row, tokens, dim, at_t, s_row)
            multiply(
                tokens, wide // LANES, dim, at_grad, row, 4, at_t, s_row, at_s, s_row, ONE, False
            )
            for i in range(tokens):
                y = _origin(top + i // columns, rows, shift_y, height)
                x = _origin(left + i % columns, columns, shift_x, width)
                if y < 0 or x < 0:
                    clear(at_p + i * s_row, wide)
                    clear(at_s + i * s_row, wide)
                    continue
                place = ((batch * heads + head) * height + y) * width + x
                exponentials(at_p + i * s_row, tokens, get(lse + 4 * place))
                delta = inner_product(at_grad + i * row, at_out + i * row, deep)
                softmax_gradient(at_p + i * s_row, at_s + i * s_row, wide, delta)
            if bias[1] != 0:
                add(at_s, s_row, tokens, wide, total, s_row)

            multiply(tokens, vectors, tokens, at_p, 4, s_row, at_grad, row, at_x, row, ONE, False)
            _scatter(dv, batch, head, top, left, geometry, at_x, row)
            multiply(tokens, vectors, tokens, at_s, s_row, 4, at_k, row, at_x, row, scale, False)
            _scatter(dq, batch, head, top, left, geometry, at_x, row)
            multiply(tokens, vectors, tokens, at_s, 4, s_row, at_q, row, at_x, row, scale, False)
            _scatter(dk, batch, head, top, left, geometry, at_x, row)
    keep(scratch)
