"""Window attention on the CPU: a window of a few heads at a time is copied in, and then each head
worked on in the first-level cache.
"""

import numpy as np
import torch
from numba import types

from .._ahead import ask, forget, queue_size
from .._blocks import (
    add,
    are_whole_floats,
    clear,
    copy_floats,
    copy_in,
    copy_in_transposed,
    copy_out,
    exponentials,
    inner_product,
    multiply,
    padded,
    read,
    scale_row,
    share,
    softmax,
    softmax_gradient,
    write,
)
from .._jit import inline, integers, jit, part
from .._layouts import layout, with_contiguous_rows
from .._memory import empty
from .._packing import empty_each
from .._threads import parallel_for
from .._vectors import F32, LANES, broadcast, get, load, put, store

ONE = np.float32(1)
ORIGINS = types.int64[::1]
GEOMETRY, LAYOUT, BIAS, SHARE = map(integers, (9, 6, 4, 2))
BEYOND = -1
"""Place of padding: negative."""
GROUPS = 8
"""Most partial sums of a head's bias gradient."""
TASKS = 64
"""Partial sums that are enough over all heads, whatever the threads, for equal results."""
HEADS = 4
"""Most heads that are copied at once."""
BLOCK = 2**18
"""Most bytes of what is copied at once, unless one head alone is more."""
TASKS_PER_THREAD = 4
"""Pieces of work to have at least, where heads can be shared out."""


def forward(q, k, v, bias, window, shift, scale):
    """Output (B, H, W, heads, dim) and log-sum-exp of the logits (B, heads, H, W)."""
    q, k, v, bias = with_contiguous_rows(q, k, v, bias)
    batch, height, width, heads, _ = q.shape
    out = empty(*v.shape, dtype=v.dtype)
    lse = torch.empty(batch, heads, height, width)
    windows = batch * _windows(q, window)
    blocks = _head_blocks(q, window, windows)
    copied, transposed, logits, masks = _sizes(q, window, blocks)
    lines = _lines(copied)
    parallel_for(
        _forward_windows,
        windows * blocks,
        _geometry(q, window, shift),
        blocks,
        lines,
        np.float32(scale),
        _layout(q),
        _layout(k),
        _layout(v),
        _bias_layout(bias),
        _layout(out),
        lse.data_ptr(),
        scratch=3 * copied + transposed + logits + masks + queue_size(lines),
    )
    return out, lse


def backward(grad, q, k, v, bias, out, lse, window, shift, scale, allocate=empty_each):
    """Gradients of q, k, v and bias, the last one empty where there is no bias.

    Those of q, k and v are in what ``allocate`` makes for them.
    """
    grad, q, k, v, bias = with_contiguous_rows(grad, q, k, v, bias)
    batch, _, _, heads, _ = q.shape
    dq, dk, dv = allocate(q, k, v)
    area = window[0] * window[1]
    windows = batch * _windows(q, window)
    groups = windows if bias is None else min(windows, GROUPS, max(TASKS // max(heads, 1), 1))
    blocks = _head_blocks(q, window, groups)
    copied, transposed, logits, masks = _sizes(q, window, blocks)
    lines = _lines(copied)
    sums = torch.empty(groups if bias is not None else 0, heads, area, -(-area // LANES) * LANES)
    parallel_for(
        _backward_windows,
        groups * blocks,
        groups,
        _geometry(q, window, shift),
        blocks,
        lines,
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
        scratch=4 * copied + transposed + 2 * logits + masks + queue_size(lines),
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


def _head_blocks(q, window, others):
    """How many parts heads are worked on in, where work is shared out among others as well."""
    heads = q.shape[3]
    most = max(min(HEADS, BLOCK // max(4 * _sizes(q, window, heads)[0], 1)), 1)
    shares = -(-TASKS_PER_THREAD * torch.get_num_threads() // max(others, 1))
    return max(-(-heads // most), min(heads, shares), 1)


def _sizes(q, window, blocks):
    """Bytes of the tokens of a block's heads, transposed tokens, logits, and what masks them."""
    heads, dim = q.shape[3:]
    tokens = window[0] * window[1]
    wide, deep = (-(-size // LANES) * LANES for size in (tokens, dim))
    copied = -(-heads // max(blocks, 1)) * tokens * deep
    return tuple(F32 * size for size in (copied, deep * wide, tokens * wide, 5 * wide))


def _lines(copied):
    """Most lines of memory that tokens of four maps lie in, given their bytes as floats."""
    return 4 * copied // 64


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


@part
def _gather(
    layout: LAYOUT, batch, heads: SHARE, origins: ORIGINS, geometry: GEOMETRY, target, target_row
):
    """Copies the tokens of a window to floats (heads, tokens, dim); padding is zeros.

    Heads, of which the first and how many are given, lie side by side on the map: what the
    hardware fetches with one of a token is needed for the next.
    """
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, _, _, _, dim, rows, columns, _, _ = geometry
    head, count = heads
    size, whole = rows * columns * target_row, are_whole_floats(dtype, dim)
    address += batch * by_batch + head * by_head
    for i in range(rows):
        for j in range(columns):
            y, x = origins[i], origins[rows + j]
            place = target + (i * columns + j) * target_row
            if y < 0 or x < 0:
                for h in range(count):
                    clear(place + h * size, target_row // 4)
            else:
                source = address + y * by_row + x * by_column
                if whole:
                    copy_floats(source, by_head, count, dim, place, size)
                else:
                    copy_in(dtype, source, by_head, count, dim, place, size)


@part
def _ask_for(queue, layout: LAYOUT, batch, heads: SHARE, origins: ORIGINS, geometry: GEOMETRY):
    """Asks for the tokens of a window that is next, which hardware does not foresee."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, _, _, _, dim, rows, columns, _, _ = geometry
    head, count = heads
    address += batch * by_batch + head * by_head
    for i in range(rows):
        for j in range(columns):
            y, x = origins[i], origins[rows + j]
            if y >= 0 and x >= 0:
                token = address + y * by_row + x * by_column
                ask(queue, token, by_head, count, dim * (4 if dtype == 0 else 2))


@part
def _scatter(
    layout: LAYOUT, batch, heads: SHARE, origins: ORIGINS, geometry: GEOMETRY, source, source_row
):
    """Copies floats (heads, tokens, dim) to the tokens of a window; padding is dropped."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    _, _, _, _, dim, rows, columns, _, _ = geometry
    head, count = heads
    size, whole = rows * columns * source_row, are_whole_floats(dtype, dim)
    address += batch * by_batch + head * by_head
    for i in range(rows):
        for j in range(columns):
            y, x = origins[i], origins[rows + j]
            if y >= 0 and x >= 0:
                place = address + y * by_row + x * by_column
                token = source + (i * columns + j) * source_row
                if whole:
                    copy_floats(token, size, count, dim, place, by_head)
                else:
                    copy_out(dtype, token, size, count, dim, place, by_head)


@inline
def _region(y, x, geometry):
    """Number of a token's region: tokens wrapped from an opposite border are of another one.

    Padding is of region 4.
    """
    if y < 0 or x < 0:
        return 4
    return (2 if y < geometry[7] else 0) + (1 if x < geometry[8] else 0)


@part
def _penalties(origins: ORIGINS, geometry: GEOMETRY, penalties, row):
    """Writes what is added to the logits of each region: -inf for keys of other regions."""
    rows, columns = geometry[5], geometry[6]
    for i in range(rows):
        for j in range(columns):
            region = _region(origins[i], origins[rows + j], geometry)
            for other in range(5):
                seen = np.float32(0) if other == region else np.float32(-np.inf)
                put(penalties + other * row + 4 * (i * columns + j), seen)


@part
def _logits(
    q,
    k,
    scale: types.float32,
    bias: BIAS,
    head,
    origins: ORIGINS,
    geometry: GEOMETRY,
    mixed: types.boolean,
    penalties,
    s,
    row,
    queue,
):
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
    multiply(tokens, vectors, dim, q, q_row, 4, k, row, s, row, scale, address != 0, queue)
    if mixed:
        for i in range(rows):
            for j in range(columns):
                region = _region(origins[i], origins[rows + j], geometry)
                place = s + (i * columns + j) * row
                add(penalties + region * row, row, 1, row // 4, place, row)


@jit
def _forward_windows(begin, end, scratch, geometry, blocks, lines, scale, q, k, v, bias, out, lse):
    _, height, width, heads, dim, rows, columns, _, _ = geometry
    tokens = rows * columns
    wide, deep = padded(tokens), padded(dim)
    origins, later = np.empty(rows + columns, np.int64), np.empty(rows + columns, np.int64)
    size = 4 * tokens * deep
    at_q = scratch
    at_k = at_q + (heads + blocks - 1) // blocks * size
    at_v = at_k + (heads + blocks - 1) // blocks * size
    at_kt = at_v + (heads + blocks - 1) // blocks * size
    at_s = at_kt + 4 * deep * wide
    penalties = at_s + 4 * tokens * wide
    queue = penalties + 5 * 4 * wide
    row, s_row = 4 * deep, 4 * wide
    batch, mixed, planned = 0, False, -1
    for task in range(begin, end):
        window, block = divmod(task, blocks)
        if window != planned:
            batch, mixed = _plan(window, geometry, origins)
            if mixed:
                _penalties(origins, geometry, penalties, s_row)
            planned = window
        some = share(block, blocks, heads)
        forget(queue, lines)
        _ask_for(queue, out, batch, some, origins, geometry)
        if task + 1 < end:
            next_window, next_block = divmod(task + 1, blocks)
            next_batch, _ = _plan(next_window, geometry, later)
            next_some = share(next_block, blocks, heads)
            for x in (q, k, v):
                _ask_for(queue, x, next_batch, next_some, later, geometry)
        _gather(q, batch, some, origins, geometry, at_q, row)
        _gather(k, batch, some, origins, geometry, at_k, row)
        _gather(v, batch, some, origins, geometry, at_v, row)
        for h in range(some[1]):
            head, own_q = some[0] + h, at_q + h * size
            copy_in_transposed(0, at_k + h * size, row, tokens, dim, at_kt, s_row)
            _logits(
                own_q, at_kt, scale, bias, head, origins, geometry, mixed, penalties, at_s, s_row,
                queue,
            )  # fmt: skip
            for i in range(rows):
                for j in range(columns):
                    place = at_s + (i * columns + j) * s_row
                    largest, total = softmax(place, tokens)
                    scale_row(place, wide, ONE / total)
                    y, x = origins[i], origins[rows + j]
                    if y >= 0 and x >= 0:
                        at = ((batch * heads + head) * height + y) * width + x
                        put(lse + 4 * at, largest + np.log(total))
            own_v = at_v + h * size
            multiply(
                tokens, deep // LANES, tokens, at_s, s_row, 4, own_v, row, own_q, row, ONE, False,
                queue,
            )  # fmt: skip
        _scatter(out, batch, some, origins, geometry, at_q, row)


@jit
def _backward_windows(
    begin,
    end,
    scratch,
    groups,
    geometry,
    blocks,
    lines,
    scale,
    q,
    k,
    v,
    bias,
    lse,
    grad,
    dq,
    dk,
    dv,
    sums,
):
    batches, height, width, heads, dim, rows, columns, _, _ = geometry
    tokens = rows * columns
    wide, deep = padded(tokens), padded(dim)
    origins, later = np.empty(rows + columns, np.int64), np.empty(rows + columns, np.int64)
    size = 4 * tokens * deep
    all_heads = (heads + blocks - 1) // blocks * size
    at_q = scratch
    at_k, at_v, at_grad = at_q + all_heads, at_q + 2 * all_heads, at_q + 3 * all_heads
    at_t = at_q + 4 * all_heads
    at_p = at_t + 4 * deep * wide
    at_s = at_p + 4 * tokens * wide
    penalties = at_s + 4 * tokens * wide
    queue = penalties + 5 * 4 * wide
    row, s_row, vectors = 4 * deep, 4 * wide, deep // LANES
    windows = batches * ((height + rows - 1) // rows) * ((width + columns - 1) // columns)
    for task in range(begin, end):
        group, block = divmod(task, blocks)
        some = share(block, blocks, heads)
        first, last = group * windows // groups, (group + 1) * windows // groups - 1
        for window in range(first, last + 1):
            batch, mixed = _plan(window, geometry, origins)
            forget(queue, lines)
            if window < last:
                next_batch, _ = _plan(window + 1, geometry, later)
                for x in (q, k, v, grad):
                    _ask_for(queue, x, next_batch, some, later, geometry)
            if mixed:
                _penalties(origins, geometry, penalties, s_row)
            _gather(q, batch, some, origins, geometry, at_q, row)
            _gather(k, batch, some, origins, geometry, at_k, row)
            _gather(v, batch, some, origins, geometry, at_v, row)
            _gather(grad, batch, some, origins, geometry, at_grad, row)
            for h in range(some[1]):
                head, shift = some[0] + h, h * size
                own_q, own_k, own_v = at_q + shift, at_k + shift, at_v + shift
                own_grad = at_grad + shift
                copy_in_transposed(0, own_k, row, tokens, dim, at_t, s_row)
                _logits(
                    own_q, at_t, scale, bias, head, origins, geometry, mixed, penalties, at_p,
                    s_row, queue,
                )  # fmt: skip
                copy_in_transposed(0, own_v, row, tokens, dim, at_t, s_row)
                multiply(
                    tokens,
                    wide // LANES,
                    dim,
                    own_grad,
                    row,
                    4,
                    at_t,
                    s_row,
                    at_s,
                    s_row,
                    ONE,
                    False,
                    queue,
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
                    total = sums + (group * heads + head) * tokens * s_row
                    if window == first:
                        copy_in(0, at_s, s_row, tokens, wide, total, s_row)
                    else:
                        add(at_s, s_row, tokens, wide, total, s_row)

                # Gradients take the places of what is not needed any more.
                multiply(
                    tokens, vectors, tokens, at_p, 4, s_row, own_grad, row, own_v, row, ONE,
                    False, queue,
                )  # fmt: skip
                multiply(
                    tokens, vectors, tokens, at_s, 4, s_row, own_q, row, own_grad, row, scale,
                    False, queue,
                )  # fmt: skip
                multiply(
                    tokens, vectors, tokens, at_s, s_row, 4, own_k, row, own_q, row, scale,
                    False, queue,
                )  # fmt: skip
            _scatter(dv, batch, some, origins, geometry, at_v, row)
            _scatter(dk, batch, some, origins, geometry, at_grad, row)
            _scatter(dq, batch, some, origins, geometry, at_q, row)


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
