"""Window attention on the CPU: one window of one head at a time, in the first-level cache."""

import numpy as np
import torch

from .._blocks import (
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
    write,
)
from .._jit import inline, jit
from .._layouts import layout, with_contiguous_rows
from .._memory import empty
from .._threads import parallel_for
from .._vectors import LANES, broadcast, get, keep, load, prefetch, put, store

ONE = np.float32(1)
BEYOND = -2
"""Place of padding: negative, and not the one before the first."""
GROUPS = 8
"""Most partial sums of a head's bias gradient."""
TASKS = 64
"""Partial sums that are enough over all heads, whatever the threads, for equal results."""


def forward(q, k, v, bias, window, shift, scale):
    """Output (B, H, W, heads, dim) and log-sum-exp of the logits (B, heads, H, W)."""
    q, k, v, bias = with_contiguous_rows(q, k, v, bias)
    batch, height, width, heads, _ = q.shape
    out = empty(*v.shape, dtype=v.dtype)
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
    grad, q, k, v, bias = with_contiguous_rows(grad, q, k, v, bias)
    batch, _, _, heads, _ = q.shape
    dq, dk, dv = (empty(*x.shape, dtype=x.dtype) for x in (q, k, v))
    area = window[0] * window[1]
    windows = batch * _windows(q, window)
    groups = windows if bias is None else min(windows, GROUPS, max(TASKS // max(heads, 1), 1))
    sums = torch.empty(groups if bias is not None else 0, heads, area, -(-area // LANES) * LANES)
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
        lse.data_ptr(),
        _layout(grad),
        _layout(dq),
        _layout(dk),
        _layout(dv),
        sums.data_ptr(),
    )
    if bias is None:
        return dq, dk, dv, q.new_empty(0)
    dbias = torch.empty(bias.shape, dtype=bias.dtype)
    dtype, address, _, row = _bias_layout(dbias)
    parallel_for(
        _add_groups,
        heads * area,
        groups,
        heads * area,
        area,
        sums.data_ptr(),
        dtype,
        address,
        row,
        min_chunk=256,
    )
    return dq, dk, dv, dbias


def _windows(q, window):
    return -(-q.shape[1] // window[0]) * -(-q.shape[2] // window[1])


def _geometry(q, window, shift):
    return (*q.shape, *window, *shift)


def _layout(x):
    """Layout of a map (B, H, W, heads, dim)."""
    return layout(x, 4)


def _bias_layout(bias):
    """Layout of a bias (heads, rows, columns), with address 0 for none."""
    return (0, 0, 0, 0) if bias is None else layout(bias, 2)


@inline
def _plan(window, geometry, origins):
    """Where the tokens of a window are on the map.

    Writes the row of the map of each row of the window, then the column of each column; ``BEYOND``
    where that is beyond the border.

    Returns:
        Batch, and whether the tokens are of more than one region.
    """
    _, height, width, _, _, rows, columns, shift_y, shift_x = geometry
    down, across = (height + rows - 1) // rows, (width + columns - 1) // columns
    batch, index = divmod(window, down * across)
    top, left = index // across * rows + shift_y, index % across * columns + shift_x
    for i in range(rows):
        y = top + i
        y = y - down * rows if y >= down * rows else y
        origins[i] = y if y < height else BEYOND
    for j in range(columns):
        x = left + j
        x = x - across * columns if x >= across * columns else x
        origins[rows + j] = x if x < width else BEYOND
    return batch, top + rows > height or left + columns > width


@inline
def _run(origins, j, end):
    """How many columns from ``j`` on lie side by side on the map."""
    run = 1
    while j + run < end and origins[j + run] == origins[j] + run:
        run += 1
    return run


@jit
def _gather(layout, batch, head, origins, geometry, target, target_row):
    """Copies the tokens (tokens, dim) of a window to floats; padding is zeros."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, _, _, _, dim, rows, columns, _, _ = geometry
    address += batch * by_batch + head * by_head
    for i in range(rows):
        y, j = origins[i], 0
        while j < columns:
            x, run = origins[rows + j], _run(origins, rows + j, rows + columns)
            place = target + (i * columns + j) * target_row
            if y < 0 or x < 0:
                clear(place, run * target_row // 4)
            else:
                source = address + y * by_row + x * by_column
                copy_in(dtype, source, by_column, run, dim, place, target_row)
            j += run


@jit
def _prefetch(layout, batch, head, origins, geometry):
    """Begins to bring in the tokens of a window that is next, which hardware does not foresee."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, _, _, _, dim, rows, columns, _, _ = geometry
    address += batch * by_batch + head * by_head
    size = dim * (4 if dtype == 0 else 2)
    for i in range(rows):
        for j in range(columns):
            token = address + origins[i] * by_row + origins[rows + j] * by_column
            for line in range(0, size, 64):
                prefetch(token + line)


@jit
def _scatter(layout, batch, head, origins, geometry, source, source_row):
    """Copies floats (tokens, dim) to the tokens of a window; padding is dropped."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, _, _, _, dim, rows, columns, _, _ = geometry
    address += batch * by_batch + head * by_head
    for i in range(rows):
        y, j = origins[i], 0
        while j < columns:
            x, run = origins[rows + j], _run(origins, rows + j, rows + columns)
            if y >= 0 and x >= 0:
                place = address + y * by_row + x * by_column
                token = source + (i * columns + j) * source_row
                copy_out(dtype, token, source_row, run, dim, place, by_column)
            j += run


@inline
def _region(y, x, geometry):
    """Number of a token's region: tokens wrapped from an opposite border are of another one.

    Padding is of region 4.
    """
    if y < 0 or x < 0:
        return 4
    return (2 if y < geometry[7] else 0) + (1 if x < geometry[8] else 0)


@jit
def _penalties(origins, geometry, penalties, row):
    """Writes what is added to the logits of each region: -inf for keys of other regions."""
    rows, columns = geometry[5], geometry[6]
    for i in range(rows):
        for j in range(columns):
            region = _region(origins[i], origins[rows + j], geometry)
            for other in range(5):
                seen = np.float32(0) if other == region else np.float32(-np.inf)
                put(penalties + other * row + 4 * (i * columns + j), seen)


@jit
def _logits(q, k, scale, bias, head, origins, geometry, mixed, penalties, s, row):
    """Logits (tokens, tokens) of a window from its queries and transposed keys."""
    dtype, address, by_head, by_row = bias
    _, _, _, _, dim, rows, columns, _, _ = geometry
    tokens, size = rows * columns, 4 if dtype == 0 else 2
    if address != 0:
        for i in range(tokens):
            source = address + head * by_head + i * by_row
            for j in range(0, tokens, LANES):
                store(s + i * row + 4 * j, read(dtype, source + j * size, tokens - j))
    vectors, q_row = row // 64, 4 * padded(dim)
    multiply(tokens, vectors, dim, q, q_row, 4, k, row, s, row, scale, address != 0)
    if mixed:
        for i in range(rows):
            for j in range(columns):
                region = _region(origins[i], origins[rows + j], geometry)
                place = s + (i * columns + j) * row
                add(penalties + region * row, row, 1, row // 4, place, row)


@jit
def _forward_windows(begin, end, geometry, scale, q, k, v, bias, out, lse):
    _, height, width, heads, dim, rows, columns, _, _ = geometry
    tokens = rows * columns
    wide, deep = padded(tokens), padded(dim)
    scratch = np.empty(3 * tokens * deep + deep * wide + (tokens + 5) * wide, np.float32)
    origins, later = np.empty(rows + columns, np.int64), np.empty(rows + columns, np.int64)
    at_q = scratch.ctypes.data
    at_k = at_q + 4 * tokens * deep
    at_v = at_k + 4 * tokens * deep
    at_kt = at_v + 4 * tokens * deep
    at_s = at_kt + 4 * deep * wide
    penalties = at_s + 4 * tokens * wide
    row, s_row = 4 * deep, 4 * wide
    batch, mixed, planned = 0, False, -1
    for task in range(begin, end):
        window, head = divmod(task, heads)
        if window != planned:
            batch, mixed = _plan(window, geometry, origins)
            if mixed:
                _penalties(origins, geometry, penalties, s_row)
            planned = window
        next_window, next_head = divmod(min(task + 1, end - 1), heads)
        next_batch, _ = _plan(next_window, geometry, later)
        _gather(q, batch, head, origins, geometry, at_q, row)
        _gather(k, batch, head, origins, geometry, at_k, row)
        _prefetch(q, next_batch, next_head, later, geometry)
        copy_in_transposed(0, at_k, row, tokens, dim, at_kt, s_row)
        _prefetch(k, next_batch, next_head, later, geometry)
        _logits(at_q, at_kt, scale, bias, head, origins, geometry, mixed, penalties, at_s, s_row)
        for i in range(rows):
            for j in range(columns):
                place = at_s + (i * columns + j) * s_row
                largest, total = softmax(place, tokens)
                scale_row(place, wide, ONE / total)
                y, x = origins[i], origins[rows + j]
                if y >= 0 and x >= 0:
                    at = ((batch * heads + head) * height + y) * width + x
                    put(lse + 4 * at, largest + np.log(total))
        _gather(v, batch, head, origins, geometry, at_v, row)
        _prefetch(v, next_batch, next_head, later, geometry)
        multiply(tokens, deep // LANES, tokens, at_s, s_row, 4, at_v, row, at_q, row, ONE, False)
        _scatter(out, batch, head, origins, geometry, at_q, row)
    keep(scratch)


@jit
def _backward_windows(
    begin, end, groups, geometry, scale, q, k, v, bias, lse, grad, dq, dk, dv, sums
):
    batches, height, width, heads, dim, rows, columns, _, _ = geometry
    tokens = rows * columns
    wide, deep = padded(tokens), padded(dim)
    scratch = np.empty(6 * tokens * deep + deep * wide + (2 * tokens + 5) * wide, np.float32)
    origins, later = np.empty(rows + columns, np.int64), np.empty(rows + columns, np.int64)
    size = 4 * tokens * deep
    at_q = scratch.ctypes.data
    at_k, at_v, at_grad, at_x = at_q + size, at_q + 2 * size, at_q + 3 * size, at_q + 4 * size
    at_t = at_q + 5 * size
    at_p = at_t + 4 * deep * wide
    at_s = at_p + 4 * tokens * wide
    penalties = at_s + 4 * tokens * wide
    row, s_row, vectors = 4 * deep, 4 * wide, deep // LANES
    windows = batches * ((height + rows - 1) // rows) * ((width + columns - 1) // columns)
    for task in range(begin, end):
        group, head = divmod(task, heads)
        total = sums + task * tokens * s_row
        first, last = group * windows // groups, (group + 1) * windows // groups - 1
        for window in range(first, last + 1):
            batch, mixed = _plan(window, geometry, origins)
            next_batch, _ = _plan(min(window + 1, last), geometry, later)
            if mixed:
                _penalties(origins, geometry, penalties, s_row)
            _gather(q, batch, head, origins, geometry, at_q, row)
            _gather(k, batch, head, origins, geometry, at_k, row)
            _gather(v, batch, head, origins, geometry, at_v, row)
            _gather(grad, batch, head, origins, geometry, at_grad, row)

            copy_in_transposed(0, at_k, row, tokens, dim, at_t, s_row)
            _prefetch(q, next_batch, head, later, geometry)
            _logits(at_q, at_t, scale, bias, head, origins, geometry, mixed, penalties, at_p, s_row)
            _prefetch(k, next_batch, head, later, geometry)
            copy_in_transposed(0, at_v, row, tokens, dim, at_t, s_row)
            multiply(
                tokens, wide // LANES, dim, at_grad, row, 4, at_t, s_row, at_s, s_row, ONE, False
            )
            for i in range(rows):
                for j in range(columns):
                    p, ds = at_p + (i * columns + j) * s_row, at_s + (i * columns + j) * s_row
                    y, x = origins[i], origins[rows + j]
                    if y < 0 or x < 0:
                        clear(p, wide)
                        clear(ds, wide)
                        continue
                    at = ((batch * heads + head) * height + y) * width + x
                    exponentials(p, tokens, get(lse + 4 * at))
                    softmax_gradient(p, ds, wide, inner_product(p, ds, wide))
            if bias[1] != 0:
                if window == first:
                    copy_in(0, at_s, s_row, tokens, wide, total, s_row)
                else:
                    add(at_s, s_row, tokens, wide, total, s_row)

            _prefetch(v, next_batch, head, later, geometry)
            multiply(tokens, vectors, tokens, at_p, 4, s_row, at_grad, row, at_x, row, ONE, False)
            _prefetch(grad, next_batch, head, later, geometry)
            _scatter(dv, batch, head, origins, geometry, at_x, row)
            multiply(tokens, vectors, tokens, at_s, s_row, 4, at_k, row, at_x, row, scale, False)
            _scatter(dq, batch, head, origins, geometry, at_x, row)
            multiply(tokens, vectors, tokens, at_s, 4, s_row, at_q, row, at_x, row, scale, False)
            _scatter(dk, batch, head, origins, geometry, at_x, row)
    keep(scratch)


@jit
def _add_groups(begin, end, groups, rows, columns, sums, dtype, target, target_row):
    """Adds up the groups' sums of the bias gradient, row by row."""
    size = 4 if dtype == 0 else 2
    row = 4 * padded(columns)
    for i in range(begin, end):
        for j in range(0, columns, LANES):
            total = broadcast(np.float32(0))
            for group in range(groups):
                total = total + load(sums + (group * rows + i) * row + 4 * j)
            write(dtype, target + i * target_row + j * size, total, columns - j)
