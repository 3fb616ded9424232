"""Attentive pooling on the CPU: a block of tokens at a time gives logits and weighted sums."""

import numpy as np
import torch

from .._blocks import (
    DTYPE_CODES,
    clear,
    copy_in,
    copy_out,
    exponentials,
    inner_product,
    multiply,
    padded,
    scale_row,
    softmax,
    softmax_gradient,
)
from .._jit import inline, jit
from .._reductions import TILE, inner_products_tile, sum_rows
from .._simd import F32, LANES, broadcast, get, load, put, store
from .._threads import parallel_for

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
BLOCK = 196608
"""Bytes of a block of tokens, which is read twice from the second-level cache."""
TASKS = 16
"""Pieces of work to have at least, and sums of the queries' gradient to keep apart."""


def forward(x, values, queries, scale, grouped, save):
    """Pooled values, and logits (B, M, N) with their log-sum-exp (B, M), if to be saved."""
    x, values, queries = _with_contiguous_rows(x, values, queries)
    batch, tokens, dim = x.shape
    count, wide = queries.shape[-2], values.shape[-1]
    out = x.new_empty((batch, wide) if grouped else (batch, count, wide))
    logits = torch.empty((batch, count, tokens) if save else 0)
    lse = torch.empty((batch, count) if save else 0)
    # Queries of an item are shared out where there are few items.
    parts = max(min(-(-TASKS // max(batch, 1)), count // 8), 1)
    parallel_for(
        _forward_items,
        batch * parts,
        parts,
        (tokens, dim, wide, count),
        _layout(x),
        _layout(values),
        _query_layout(queries),
        np.float32(scale),
        grouped,
        _layout(out),
        logits.data_ptr() if save else 0,
        lse.data_ptr() if save else 0,
    )
    return out, logits, lse


def backward(grad, x, values, queries, out, logits, lse, scale, grouped, needs):
    """Gradients of x, values and queries as far as needed; that of x has the values' if shared."""
    shared = values is None
    x, queries, grad = _with_contiguous_rows(x, queries, grad)
    values = x if shared else _with_contiguous_rows(values)[0]
    batch, tokens, dim = x.shape
    count, wide = queries.shape[-2], values.shape[-1]
    need_x, need_values, need_queries = needs
    dx = x.new_empty(x.shape if need_x else 0)
    dvalues = values.new_empty(values.shape if need_values and not shared else 0)
    # Sums over the batch are made of a number of parts that does not depend on threads.
    splits = min(batch, TASKS) if queries.ndim == 2 else batch
    dqueries = torch.zeros(splits, count, dim)
    parallel_for(
        _backward_items,
        splits,
        splits,
        batch,
        (tokens, dim, wide, count),
        _layout(x),
        _layout(values),
        _query_layout(queries),
        np.float32(scale),
        grouped,
        _layout(out),
        logits.data_ptr(),
        lse.data_ptr(),
        _layout(grad),
        _layout(dx) if need_x else (FLOAT, 0, 0, 0),
        _layout(dvalues) if need_values and not shared else (FLOAT, 0, 0, 0),
        dqueries.data_ptr() if need_queries else 0,
    )
    if not need_queries:
        return dx, dvalues, queries.new_empty(0)
    dqueries = dqueries if queries.ndim == 3 else dqueries.sum(0)
    return dx, dvalues, dqueries.to(queries.dtype)


def _with_contiguous_rows(*tensors):
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _layout(x):
    """Code of the dtype, address, and strides in bytes of batch and rows."""
    size = x.element_size()
    return DTYPE_CODES[x.dtype], x.data_ptr(), x.stride(0) * size, x.stride(-2) * size


def _query_layout(queries):
    return _layout(queries if queries.ndim == 3 else queries.expand(1, -1, -1).expand(2, -1, -1))


@inline
def _tiled(count):
    return (count + TILE - 1) // TILE * TILE


@jit
def _geometry(sizes, grouped):
    """Floats of rows of x and values, tokens of a block, floats of its rows, width of a group."""
    tokens, dim, wide, count = sizes
    depth, width = padded(dim), padded(wide) + LANES
    most = max(BLOCK // (max(depth, width) * F32) // TILE * TILE, LANES)
    blocks = (tokens + most - 1) // most
    length = min(_tiled((tokens + blocks - 1) // max(blocks, 1)), most)
    return depth, width, length, padded(length) + LANES, wide // count if grouped else wide


@jit
def _rows(layout, item, first, number, columns, target, target_row):
    """Rows of floats, where they are or copied: their address, stride, and number in whole tiles.

    Those that are not copied need not be whole tiles.
    """
    dtype, address, batch, row = layout
    source = address + item * batch + first * row
    if dtype == FLOAT and columns % LANES == 0 and number >= TILE:
        return source, row, number
    copy_in(dtype, source, row, number, columns, target, target_row)
    clear(target + number * target_row, (_tiled(number) - number) * target_row // F32)
    return target, target_row, _tiled(number)


@jit
def _inner_products(rows, columns, depth, a, a_row, b, b_row, c, c_row):
    """``C = A B^T`` of at least 4 rows each; the last tiles may overlap those before them.

    Rows of B, which may come from main memory, are read once.
    """
    for j in range(0, columns, TILE):
        left = min(j, columns - TILE)
        for i in range(0, rows, TILE):
            top = min(i, rows - TILE)
            inner_products_tile(
                depth // LANES,
                a + top * a_row,
                a_row,
                b + left * b_row,
                b_row,
                c + top * c_row + left * F32,
                c_row,
            )


@inline
def _aligned(address):
    return (address + 63) // 64 * 64


@jit
def _copy_queries(queries, item, start, count, dim, scale, target, row):
    """Copies queries in whole tiles, with the scale of the logits."""
    dtype, address, batch, source_row = queries
    copy_in(dtype, address + item * batch + start * source_row, source_row, count, dim, target, row)
    clear(target + count * row, (_tiled(count) - count) * row // F32)
    scale_row(target, count * row // F32, scale)


@jit
def _forward_items(begin, end, parts, sizes, x, values, queries, scale, grouped, out, logits, lse):
    tokens, dim, wide, count = sizes
    depth, width, length, line, group = _geometry(sizes, grouped)
    group_vectors = padded(group) // LANES
    row, pooled_row = depth * F32, group_vectors * LANES * F32
    most = _tiled((count + parts - 1) // parts)
    shared = x[1] == values[1]
    floats = most * (depth + group_vectors * LANES + line + 2) + length * (depth + width)
    scratch = np.empty(floats + LANES, np.float32)
    q = _aligned(scratch.ctypes.data)
    pooled = q + most * row
    p = pooled + most * pooled_row
    copies = p + most * line * F32
    value_copies = copies + length * row
    largest = value_copies + length * width * F32
    total = largest + most * F32
    one = np.float32(1)
    for task in range(begin, end):
        b, part = task // parts, task % parts
        start = count * part // parts
        some = count * (part + 1) // parts - start
        _copy_queries(queries, b, start, some, dim, scale, q, row)
        for i in range(some):
            put(largest + i * F32, np.float32(-np.inf))
            put(total + i * F32, np.float32(0))
        for first in range(0, tokens, length):
            number = min(length, tokens - first)
            place, place_row, whole = _rows(x, b, first, number, dim, copies, row)
            _inner_products(_tiled(some), whole, depth, q, row, place, place_row, p, line * F32)
            for i in range(some):
                weights = p + i * line * F32
                if logits > 0:
                    target = logits + ((b * count + start + i) * tokens + first) * F32
                    copy_out(FLOAT, weights, 0, 1, number, target, 0)
                _weigh(
                    weights,
                    number,
                    largest + i * F32,
                    total + i * F32,
                    pooled + i * pooled_row,
                    group_vectors * LANES if first > 0 else 0,
                )
            if grouped:
                # Copied even where rows could stay: groups are read to whole vectors.
                place, place_row = value_copies, width * F32
                source = values[1] + b * values[2] + first * values[3]
                copy_in(values[0], source, values[3], number, wide, place, place_row)
            elif not shared:
                place, place_row, _ = _rows(
                    values, b, first, number, wide, value_copies, width * F32
                )
            if grouped:
                for i in range(some):
                    multiply(
                        1,
                        group_vectors,
                        number,
                        p + i * line * F32,
                        0,
                        F32,
                        place + (start + i) * group * F32,
                        place_row,
                        pooled + i * pooled_row,
                        0,
                        one,
                        first > 0,
                    )
            else:
                multiply(
                    some,
                    group_vectors,
                    number,
                    p,
                    line * F32,
                    F32,
                    place,
                    place_row,
                    pooled,
                    pooled_row,
                    one,
                    first > 0,
                )
        for i in range(some):
            scale_row(pooled + i * pooled_row, group_vectors * LANES, one / get(total + i * F32))
            if lse > 0:
                value = get(largest + i * F32) + np.log(get(total + i * F32))
                put(lse + (b * count + start + i) * F32, np.float32(value))
            size = 4 if out[0] == FLOAT else 2
            target = (start + i) * group * size if grouped else (start + i) * out[3]
            copy_out(out[0], pooled + i * pooled_row, 0, 1, group, out[1] + b * out[2] + target, 0)


@jit
def _weigh(p, number, largest, total, pooled, columns):
    """Turns a row of logits to weights relative to the largest so far.

    What was summed with weights relative to a smaller one is rescaled.
    """
    before = get(largest)
    now, added = softmax(p, number)
    if now < before:
        factor = np.float32(np.exp(now - before))
        scale_row(p, padded(number), factor)
        put(total, get(total) + added * factor)
        return
    factor = np.float32(np.exp(before - now))
    if before < now:
        scale_row(pooled, columns, factor)
    put(total, get(total) * factor + added)
    put(largest, now)


@jit
def _backward_items(
    begin,
    end,
    splits,
    batch,
    sizes,
    x,
    values,
    queries,
    scale,
    grouped,
    out,
    logits,
    lse,
    grad,
    dx,
    dvalues,
    dqueries,
):
    tokens, dim, wide, count = sizes
    depth, width, length, line, group = _geometry(sizes, grouped)
    row, value_row, line_row = depth * F32, width * F32, line * F32
    shared = x[1] == values[1]
    high, whole_length = _tiled(count), padded(length)
    floats = high * (2 * depth + width + 2 * line + 1)
    floats += whole_length * (2 * depth + 2 * width) + width
    scratch = np.empty(floats + LANES, np.float32)
    q = _aligned(scratch.ctypes.data)
    dq = q + high * row
    upstream = dq + high * row
    p = upstream + high * value_row
    dp = p + high * line_row
    copies = dp + high * line_row
    value_copies = copies + whole_length * row
    result = value_copies + whole_length * value_row
    products = result + whole_length * row
    pooled = products + whole_length * value_row
    deltas = pooled + value_row
    one = np.float32(1)
    for task in range(begin, end):
        clear(dq, high * depth)
        for b in range(batch * task // splits, batch * (task + 1) // splits):
            _copy_queries(queries, b, 0, count, dim, scale, q, row)
            _copy_upstream(
                grad, out, b, count, wide, group, grouped, upstream, value_row, pooled, deltas
            )
            for first in range(0, tokens, length):
                number = min(length, tokens - first)
                place, place_row, whole = _rows(x, b, first, number, dim, copies, row)
                value_place, value_place_row = place, place_row
                if grouped:
                    value_place, value_place_row = value_copies, value_row
                    source = values[1] + b * values[2] + first * values[3]
                    copy_in(values[0], source, values[3], number, wide, value_copies, value_row)
                elif not shared:
                    value_place, value_place_row, whole = _rows(
                        values, b, first, number, wide, value_copies, value_row
                    )
                if grouped:
                    _grouped_products(
                        number,
                        count,
                        group,
                        value_copies,
                        upstream,
                        value_row,
                        products,
                        dp,
                        line_row,
                    )
                else:
                    _inner_products(
                        high,
                        whole,
                        padded(wide),
                        upstream,
                        value_row,
                        value_place,
                        value_place_row,
                        dp,
                        line_row,
                    )
                for i in range(count):
                    source = (b * count + i) * tokens + first
                    copy_in(FLOAT, logits + source * F32, 0, 1, number, p + i * line_row, line_row)
                    exponentials(p + i * line_row, number, get(lse + (b * count + i) * F32))
                if dvalues[1] > 0 or (shared and dx[1] > 0):
                    target, target_row = (result, row) if shared else (products, value_row)
                    if grouped:
                        _spread_weights(
                            number, count, group, p, line_row, upstream, target, target_row
                        )
                    else:
                        multiply(
                            number,
                            padded(wide) // LANES,
                            count,
                            p,
                            F32,
                            line_row,
                            upstream,
                            value_row,
                            target,
                            target_row,
                            one,
                            False,
                        )
                    if not shared:
                        _write(dvalues, b, first, number, wide, products, value_row)
                for i in range(count):
                    shift = i * line_row
                    softmax_gradient(p + shift, dp + shift, number, get(deltas + i * F32))
                if dqueries > 0:
                    multiply(
                        count,
                        depth // LANES,
                        number,
                        dp,
                        line_row,
                        F32,
                        place,
                        place_row,
                        dq,
                        row,
                        scale,
                        True,
                    )
                if dx[1] > 0:
                    multiply(
                        number,
                        depth // LANES,
                        count,
                        dp,
                        F32,
                        line_row,
                        q,
                        row,
                        result,
                        row,
                        one,
                        shared,
                    )
                    _write(dx, b, first, number, dim, result, row)
        if dqueries > 0:
            copy_out(FLOAT, dq, row, count, dim, dqueries + task * count * dim * F32, dim * F32)


@jit
def _copy_upstream(
    grad, out, item, count, wide, group, grouped, upstream, upstream_row, pooled, deltas
):
    """Upstream gradients in whole tiles of rows, and their inner products with the output.

    Grouped ones are one row of the groups of all queries.
    """
    source = grad[1] + item * grad[2]
    pooled_source = out[1] + item * out[2]
    if grouped:
        copy_in(grad[0], source, 0, 1, wide, upstream, upstream_row)
        copy_in(out[0], pooled_source, 0, 1, wide, pooled, upstream_row)
        for i in range(count):
            total = np.float32(0)
            for j in range(i * group, (i + 1) * group):
                total += get(upstream + j * F32) * get(pooled + j * F32)
            put(deltas + i * F32, total)
        return
    copy_in(grad[0], source, grad[3], count, wide, upstream, upstream_row)
    clear(upstream + count * upstream_row, (_tiled(count) - count) * upstream_row // F32)
    for i in range(count):
        copy_in(out[0], pooled_source + i * out[3], 0, 1, wide, pooled, upstream_row)
        put(deltas + i * F32, inner_product(upstream + i * upstream_row, pooled, padded(wide)))


@jit
def _grouped_products(number, count, group, values, upstream, values_row, products, dp, dp_row):
    """Inner products (count, number) of upstream gradients and values, each of a query's group."""
    columns = count * group
    for i in range(number):
        for j in range(0, columns, LANES):
            value = load(values + i * values_row + j * F32) * load(upstream + j * F32)
            store(products + i * values_row + j * F32, value)
    for i in range(count):
        for n in range(0, number, LANES):
            place = products + n * values_row + i * group * F32
            store(dp + i * dp_row + n * F32, sum_rows(place, values_row, group))


@jit
def _spread_weights(number, count, group, p, p_row, upstream, target, target_row):
    """Upstream gradients of each group (number, count * group) times the weights of its query."""
    for n in range(number):
        for i in range(count):
            weight = broadcast(get(p + i * p_row + n * F32))
            # What a vector holds beyond its group is overwritten by the next one.
            for j in range(i * group, (i + 1) * group, LANES):
                store(target + n * target_row + j * F32, weight * load(upstream + j * F32))


@inline
def _write(layout, item, first, number, columns, source, source_row):
    dtype, address, batch, row = layout
    copy_out(dtype, source, source_row, number, columns, address + item * batch + first * row, row)
