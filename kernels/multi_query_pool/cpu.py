"""Attentive pooling on the CPU: a block of tokens at a time gives logits and weighted sums."""

import numpy as np
import torch

from .._blocks import (
    clear,
    copy_in,
    copy_in_transposed,
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
from .._layouts import DTYPE_CODES, with_contiguous_rows
from .._memory import empty
from .._reductions import TILE
from .._threads import parallel_for
from .._vectors import F32, LANES, get, put
from ._matrices import FLOAT, copy_tiles, find_rows, in_whole_tiles, inner_products, tiled
from ._projection import project, project_gradient

__all__ = ["backward", "forward", "project", "project_gradient"]

ONE = np.float32(1)
BLOCK = 196608
"""Bytes of a block of tokens, which is read twice from the second-level cache."""
TASKS = 16
"""Most sums of the queries' gradient to keep apart, each of some items."""
NOTHING = (FLOAT, 0, 0, 0)


def forward(x, values, queries, scale, save):
    """Pooled values (B, M, E), and logits (B, M, N) with their log-sum-exp, if to be saved."""
    x, queries, values = _with_contiguous_rows(x, queries, values)
    batch, tokens, dim = x.shape
    count, wide = queries.shape[-2], values.shape[-1]
    out = torch.empty(batch, count, wide, dtype=values.dtype)
    logits = torch.empty((batch, count, tokens) if save else 0)
    lse = torch.empty((batch, count) if save else 0)
    # Queries of an item are shared out where there are few items; results do not depend on it.
    parts = max(min(-(-2 * torch.get_num_threads() // max(batch, 1)), count // LANES), 1)
    sizes = _sizes(tokens, dim, wide, count)
    depth, width, length, line = sizes[4:]
    lanes = padded.py_func(-(-count // parts))
    parallel_for(
        _forward_items,
        batch * parts,
        parts,
        sizes,
        _layout(x),
        _layout(values),
        _query_layout(queries),
        np.float32(scale),
        _layout(out),
        logits.data_ptr() if save else 0,
        lse.data_ptr() if save else 0,
        scratch=F32 * (lanes * (depth + width + line + length + 2) + length * (depth + width)),
    )
    return out, logits, lse


def backward(grad, x, values, queries, out, logits, lse, scale, needs):
    """Gradients of x, values and queries where needed; x's has that of the values if x are both."""
    shared = values is None
    x, queries, values = _with_contiguous_rows(x, queries, values)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    batch, tokens, dim = x.shape
    count, wide = queries.shape[-2], values.shape[-1]
    need_x, need_values, need_queries = needs
    dx = empty(*(x.shape if need_x else [0]), dtype=x.dtype)
    dvalues = empty(*(values.shape if need_values else [0]), dtype=values.dtype)
    # Sums over the batch are made of a number of parts that does not depend on threads.
    splits = min(batch, TASKS) if queries.ndim == 2 else batch
    dqueries = torch.zeros(splits, count, dim)
    sizes = _sizes(tokens, dim, wide, count)
    depth, width, length, line = sizes[4:]
    rows = in_whole_tiles(count) * (2 * depth + width + 2 * line + 1)
    parallel_for(
        _backward_items,
        splits,
        splits,
        batch,
        sizes,
        _layout(x),
        _layout(values),
        shared,
        _query_layout(queries),
        np.float32(scale),
        _layout(out),
        logits.data_ptr(),
        lse.data_ptr(),
        _layout(grad),
        _layout(dx) if need_x else NOTHING,
        _layout(dvalues) if need_values else NOTHING,
        dqueries.data_ptr() if need_queries else 0,
        scratch=F32 * (rows + length * (2 * depth + 2 * width) + width),
    )
    if not need_queries:
        return dx, dvalues, torch.empty(0, dtype=queries.dtype)
    dqueries = dqueries if queries.ndim == 3 else dqueries.sum(0)
    return dx, dvalues, dqueries.to(queries.dtype)


def _with_contiguous_rows(x, queries, values):
    x, queries, values = with_contiguous_rows(x, queries, values)
    return x, queries, x if values is None else values


def _layout(x):
    """Code of the dtype, address, and strides in bytes of batch and rows."""
    size = x.element_size()
    return DTYPE_CODES[x.dtype], x.data_ptr(), x.stride(0) * size, x.stride(-2) * size


def _query_layout(queries):
    code, address, batch, row = _layout(queries)
    return code, address, batch if queries.ndim == 3 else 0, row


def _sizes(tokens, dim, wide, count):
    """Tokens, widths of x and values, queries; then those widths in whole vectors, tokens of a
    block, and floats of a row of one.
    """
    depth, width = (-(-size // LANES) * LANES for size in (dim, wide))
    most = max(BLOCK // (max(depth, width) * F32) // TILE * TILE, LANES)
    blocks = -(-tokens // most)
    length = min(in_whole_tiles(-(-tokens // blocks)), most)
    return tokens, dim, wide, count, depth, width, length, -(-length // LANES) * LANES


@jit
def _forward_items(begin, end, scratch, parts, sizes, x, values, queries, scale, out, logits, lse):
    tokens, dim, wide, count, depth, width, length, line = sizes
    row, pooled_row, line_row = depth * F32, width * F32, line * F32
    lanes = padded((count + parts - 1) // parts)
    across = lanes * F32
    q = scratch
    pooled = q + depth * across
    p = pooled + lanes * pooled_row
    turned = p + lanes * line_row
    copies = turned + length * across
    value_copies = copies + length * row
    largest = value_copies + length * pooled_row
    total = largest + lanes * F32
    for task in range(begin, end):
        b, part = task // parts, task % parts
        start = count * part // parts
        some = count * (part + 1) // parts - start
        source = queries[1] + b * queries[2] + start * queries[3]
        copy_in_transposed(queries[0], source, queries[3], some, dim, q, across)
        scale_row(q, dim * lanes, scale)
        for i in range(some):
            put(largest + i * F32, np.float32(-np.inf))
            put(total + i * F32, np.float32(0))
        for first in range(0, tokens, length):
            number = min(length, tokens - first)
            place, place_row, _ = find_rows(x, b, first, number, dim, copies)
            # Queries as lanes: products with tokens, of which each number serves them all.
            multiply(
                number,
                padded(some) // LANES,
                dim,
                place,
                place_row,
                F32,
                q,
                across,
                turned,
                across,
                ONE,
                False,
            )
            copy_in_transposed(FLOAT, turned, across, number, some, p, line_row)
            for i in range(some):
                if logits > 0:
                    target = logits + ((b * count + start + i) * tokens + first) * F32
                    copy_out(FLOAT, p + i * line_row, 0, 1, number, target, 0)
                _weigh(
                    p + i * line_row,
                    number,
                    largest + i * F32,
                    total + i * F32,
                    pooled + i * pooled_row,
                    width if first > 0 else 0,
                )
            if values[1] != x[1]:
                place, place_row, _ = find_rows(values, b, first, number, wide, value_copies)
            multiply(
                some,
                width // LANES,
                number,
                p,
                line_row,
                F32,
                place,
                place_row,
                pooled,
                pooled_row,
                ONE,
                first > 0,
            )
        for i in range(some):
            scale_row(pooled + i * pooled_row, width, ONE / get(total + i * F32))
            if lse > 0:
                value = get(largest + i * F32) + np.log(get(total + i * F32))
                put(lse + (b * count + start + i) * F32, np.float32(value))
        target = out[1] + b * out[2] + start * out[3]
        copy_out(out[0], pooled, pooled_row, some, wide, target, out[3])


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
    scratch,
    splits,
    batch,
    sizes,
    x,
    values,
    shared,
    queries,
    scale,
    out,
    logits,
    lse,
    grad,
    dx,
    dvalues,
    dqueries,
):
    tokens, dim, wide, count, depth, width, length, line = sizes
    row, value_row, line_row = depth * F32, width * F32, line * F32
    high = tiled(count)
    q = scratch
    dq = q + high * row
    upstream = dq + high * row
    p = upstream + high * value_row
    dp = p + high * line_row
    copies = dp + high * line_row
    value_copies = copies + length * row
    result = value_copies + length * value_row
    value_result = result + length * row
    pooled = value_result + length * value_row
    deltas = pooled + value_row
    for task in range(begin, end):
        clear(dq, high * depth)
        for b in range(batch * task // splits, batch * (task + 1) // splits):
            copy_tiles(queries, b, 0, count, dim, q)
            scale_row(q, count * depth, scale)
            copy_tiles(grad, b, 0, count, wide, upstream)
            for i in range(count):
                copy_in(out[0], out[1] + b * out[2] + i * out[3], 0, 1, wide, pooled, value_row)
                put(deltas + i * F32, inner_product(upstream + i * value_row, pooled, width))
            for first in range(0, tokens, length):
                number = min(length, tokens - first)
                place, place_row, whole = find_rows(x, b, first, number, dim, copies)
                source, source_row = place, place_row
                if not shared:
                    source, source_row, whole = find_rows(
                        values, b, first, number, wide, value_copies
                    )
                inner_products(
                    high, whole, width, upstream, value_row, source, source_row, dp, line_row
                )
                for i in range(count):
                    weights = p + i * line_row
                    saved = logits + ((b * count + i) * tokens + first) * F32
                    copy_in(FLOAT, saved, 0, 1, number, weights, 0)
                    exponentials(weights, number, get(lse + (b * count + i) * F32))
                if dvalues[1] > 0 or (shared and dx[1] > 0):
                    multiply(
                        number,
                        width // LANES,
                        count,
                        p,
                        F32,
                        line_row,
                        upstream,
                        value_row,
                        result if shared else value_result,
                        value_row,
                        ONE,
                        False,
                    )
                if dvalues[1] > 0:
                    _write(dvalues, b, first, number, wide, value_result)
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
                        ONE,
                        shared,
                    )
                    _write(dx, b, first, number, dim, result)
        if dqueries > 0:
            copy_out(FLOAT, dq, row, count, dim, dqueries + task * count * dim * F32, dim * F32)


@inline
def _write(layout, item, first, number, columns, source):
    dtype, address, batch, row = layout
    target = address + item * batch + first * row
    copy_out(dtype, source, padded(columns) * F32, number, columns, target, row)
