"""Bi-level routing attention on the CPU: some queries of a region at a time, in the cache.

Work is split into items: up to ``QUERIES`` queries of one region. An item lists the addresses of
its queries and of all tokens of the regions that these attend to; rows go straight from there into
scratch memory, and while an item is worked on, the rows of the next one are on their way.

Logits are multiplied by log2(e) once, so that all exponentials are powers of 2.
"""

import numpy as np
import torch
from numba import types

from .._blocks import add, clear, inner_product, multiply, padded, read, write
from .._jit import jit, part
from .._layouts import layout, with_contiguous_rows
from .._memory import empty
from .._threads import CHUNKS_PER_THREAD, parallel_for
from .._vectors import (
    LANES,
    broadcast,
    exp2,
    fma,
    get,
    get_int,
    keep,
    lanes_below,
    load,
    log,
    maximum,
    prefetch,
    put,
    reduce_add,
    reduce_max,
    select,
    store,
)
from ._regions import (
    LAYOUT,
    QUERIES,
    add_rows,
    clear_map,
    clear_padding,
    copy_map,
    count_items,
    count_parts,
    count_regions,
    gather_rows,
    gather_rows_transposed,
    list_at,
    list_keys,
    list_queries,
    list_tokens,
    locate,
    prefetch_rows,
    scatter_rows,
)
from .reference import choose_regions, invert_routing, lay_grids, populated_regions

ONE = np.float32(1)
LOG2_E = np.float32(np.log2(np.e))
LEAST = np.float32(-3e38)
KEYS = 128
"""Most keys at a time."""


def route_regions(q, k, regions, topk, scale, pad_mode):
    """Routing indices (B, P, topk)."""
    grids = lay_grids(q, k, regions, pad_mode)
    means = [_region_means(x, grid) for x, grid in zip((q, k), grids, strict=True)]
    return choose_regions(*means, populated_regions(k, grids[1]), topk, scale)


def forward(q, k, v, routing, regions, scale, pad_mode):
    """Output (B, H, W, heads, dim_v), and log2 of the sums of exponentials (B, heads, H, W)."""
    q, k, v = with_contiguous_rows(q, k, v)
    batch, height, width, heads, _ = q.shape
    out = empty(batch, height, width, heads, v.shape[-1], dtype=v.dtype)
    lse = torch.empty(batch, heads, height, width)
    routing, geometry = _geometry(q, k, v, routing, regions, pad_mode)
    parallel_for(
        _forward_items,
        batch * count_items.py_func(geometry[1]),
        *geometry,
        np.float32(scale),
        (_layout(q), _layout(out), _layout_of_rows(lse)),
        (_layout(k), _layout(v)),
        routing.data_ptr(),
    )
    return out, lse


def backward(grad, q, k, v, routing, out, lse, regions, scale, pad_mode):
    """Gradients of q, k and v.

    The gradients of keys and values are sums over the query regions that chose them, in ascending
    order. Mostly, a task goes through all queries of some heads and adds to these sums. Where there
    are fewer heads than threads, keys have a pass of their own, a key region at a time, in which
    probabilities are computed once more; sums are the same to the bit.
    """
    grad, q, k, v = with_contiguous_rows(grad, q, k, v)
    batch, _, _, heads, dim = q.shape
    dim_v = v.shape[-1]
    dq, dk, dv = (empty(*x.shape, dtype=x.dtype) for x in (q, k, v))
    routing, geometry = _geometry(q, k, v, routing, regions, pad_mode)
    threads = torch.get_num_threads()
    together = batch * heads >= threads
    items, group = count_items.py_func(geometry[1]), heads
    if together:
        group = 1
        if not (_sums_apart.py_func(_layout(dk), dim) or _sums_apart.py_func(_layout(dv), dim_v)):
            group = max(min(heads, batch * heads // (CHUNKS_PER_THREAD * threads)), 1)
    delta = lse if together else torch.empty_like(lse)
    parallel_for(
        _backward_items,
        batch * -(-heads // group) * (1 if together else items),
        items if together else 1,
        group,
        together,
        *geometry,
        np.float32(scale),
        (
            *map(_layout, (q, grad, out, dq)),
            *map(_layout_of_rows, (lse, delta)),
        ),
        tuple(map(_layout, (k, v, dk, dv))),
        routing.data_ptr(),
    )
    if not together:
        count = count_regions.py_func(geometry[2])
        starts, users = invert_routing(routing, count)
        parallel_for(
            _backward_regions,
            batch * count * heads,
            *geometry,
            np.float32(scale),
            (*map(_layout, (q, grad)), *map(_layout_of_rows, (lse, delta))),
            tuple(map(_layout, (k, v, dk, dv))),
            starts.data_ptr(),
            users.data_ptr(),
        )
    return dq, dk, dv


def _region_means(x, grid):
    """Means over the tokens of each region, (B, P, heads * dim); 0 where there are none."""
    (x,) = with_contiguous_rows(x)
    batch, _, _, heads, dim = x.shape
    if x.stride(3) == dim:
        x, heads, dim = x.flatten(3)[..., None, :], 1, heads * dim
    place = _map(x, grid)
    means = torch.empty(batch, count_regions.py_func(place), heads * dim)
    parallel_for(
        _mean_regions,
        batch * count_regions.py_func(place),
        (heads, dim),
        place,
        _layout(x),
        means.data_ptr(),
        min_chunk=4,
    )
    return means


def _layout(x):
    """Layout of a map (B, H, W, heads, dim)."""
    return layout(x, 4)


def _layout_of_rows(x):
    """Layout of a tensor (B, heads, H, W)."""
    return _layout(x.permute(0, 2, 3, 1))


def _map(x, grid):
    """Sides of a map, and the grid of regions over it."""
    return (*x.shape[1:3], *grid)


def _geometry(q, k, v, routing, regions, pad_mode):
    """Routing as whole 64-bit integers; and what it is about.

    That is heads, widths and topk; maps of queries and keys; whether padding is attended to.

    Raises:
        ValueError: If the routing names a region that there is not.
    """
    q_grid, k_grid = lay_grids(q, k, regions, pad_mode)
    count = k_grid.rows * k_grid.columns
    routing = routing.to(torch.int64).contiguous()
    if routing.numel() and not 0 <= routing.min() <= routing.max() < count:
        raise ValueError(
            f"routing must hold regions from 0 to {count - 1}; got from {routing.min().item()} to "
            f"{routing.max().item()}"
        )
    sizes = (*q.shape[3:], v.shape[-1], routing.shape[-1])
    return routing, (sizes, _map(q, q_grid), _map(k, k_grid), pad_mode == "zero")


@jit
def _hide_tail(s, s_row, rows, columns):
    """Writes -inf behind the columns of a block of logits, up to a multiple of 16."""
    rest = columns % LANES
    if rest:
        inside, low = lanes_below(rest), broadcast(np.float32(-np.inf))
        for i in range(rows):
            place = s + i * s_row + 4 * (columns - rest)
            store(place, select(inside, load(place), low))


@part
def _softmax_rows(s, s_row, rows, columns, tops, sums, first: types.boolean, out, out_row, vectors):
    """Turns rows of logits into powers of 2, relative to the largest logit so far.

    ``tops`` has this for each row, ``sums`` the sum of the powers so far. Where there were logits
    before these, what they summed up to in the rows of ``out`` is made relative, too.
    """
    for i in range(rows):
        x = s + i * s_row
        top = load(x)
        for j in range(LANES, columns, LANES):
            top = maximum(top, load(x + 4 * j))
        largest = max(reduce_max(top), LEAST)
        if not first:
            before = get(tops + 4 * i)
            largest = max(largest, before)
            decay = np.float32(2) ** (before - largest)
            put(sums + 4 * i, get(sums + 4 * i) * decay)
            factor = broadcast(decay)
            for j in range(vectors):
                place = out + i * out_row + 64 * j
                store(place, load(place) * factor)
        put(tops + 4 * i, largest)
    for i in range(rows):
        x = s + i * s_row
        shift, total = broadcast(get(tops + 4 * i)), broadcast(np.float32(0))
        for j in range(0, columns, LANES):
            value = exp2(load(x + 4 * j) - shift)
            total = total + value
            store(x + 4 * j, value)
        before = np.float32(0) if first else get(sums + 4 * i)
        put(sums + 4 * i, before + reduce_add(total))


@jit
def _mean_regions(begin, end, sizes, place, x, means):
    heads, dim = sizes
    dtype, address, by_batch, by_row, by_column, by_head = x
    size, deep, area = 4 if dtype == 0 else 2, padded(dim), place[4] * place[5]
    sums = np.empty(heads * deep, np.float32)
    ys, xs = np.empty(area, np.int64), np.empty(area, np.int64)
    at = np.int64(sums.ctypes.data)
    for task in range(begin, end):
        batch, region = divmod(task, count_regions(place))
        count = list_tokens(region, place, False, ys, xs, 0)
        clear(at, heads * deep)
        for i in range(count):
            row = address + batch * by_batch + ys[i] * by_row + xs[i] * by_column
            for head in range(heads):
                source, total = row + head * by_head, at + 4 * head * deep
                for j in range(0, dim, LANES):
                    prefetch(source + by_row + j * size)
                    value = read(dtype, source + j * size, dim - j)
                    store(total + 4 * j, load(total + 4 * j) + value)
        share = broadcast(np.float32(1 / max(count, 1)))
        for head in range(heads):
            target = means + 4 * (task * heads + head) * dim
            for j in range(0, dim, LANES):
                write(0, target + 4 * j, load(at + 4 * (head * deep + j)) * share, dim - j)
    keep(sums)


@jit
def _forward_items(begin, end, sizes, q_map, k_map, zero, scale, queries, keys, routing):
    heads, dim, dim_v, topk = sizes
    q, out, lse = queries
    k, v = keys
    area, longest = q_map[4] * q_map[5], topk * k_map[4] * k_map[5]
    q_most, k_most = min(area, QUERIES), min(padded(longest), KEYS)
    deep, deep_v = padded(dim), padded(dim_v)

    # Lists of two items: the one at work and the next one.
    q_tokens, k_tokens = np.empty((2, 2, area), np.int64), np.empty((2, 2, longest), np.int64)
    q_lists = np.empty((2, 3, padded(q_most)), np.int64)
    k_lists = np.empty((2, 2, padded(longest)), np.int64)
    counts = np.empty((2, 2), np.int64)
    scratch = np.empty(
        q_most * (deep + deep_v + k_most) + k_most * (deep + deep_v) + 2 * padded(q_most),
        np.float32,
    )
    q_row, o_row, s_row = 4 * deep, 4 * deep_v, 4 * k_most
    at_q = np.int64(scratch.ctypes.data)
    at_o = at_q + q_most * q_row
    at_s = at_o + q_most * o_row
    at_k = at_s + q_most * s_row
    at_v = at_k + deep * s_row
    at_tops = at_v + k_most * o_row
    at_sums = at_tops + 4 * padded(q_most)

    for item in range(begin, end):
        for other in range(item if item == begin else item + 1, min(item + 2, end)):
            slot = other % 2
            counts[slot, 0] = list_queries(other, q_map, queries, q_tokens[slot], q_lists[slot])
            counts[slot, 1] = list_keys(
                other, topk, q_map, k_map, zero, keys, routing, k_tokens[slot], k_lists[slot]
            )
        slot, ahead = item % 2, 1 - item % 2
        count_q, count_k, ys = counts[slot, 0], counts[slot, 1], k_tokens[slot, 0]
        if count_q <= 0:
            continue
        q_rows, o_rows = list_at(q_lists, slot, 0), list_at(q_lists, slot, 1)
        k_rows, v_rows = list_at(k_lists, slot, 0), list_at(k_lists, slot, 1)
        for head in range(heads):
            if item + 1 < end and counts[ahead, 0] >= LANES:
                prefetch_rows(q, head, list_at(q_lists, ahead, 0), counts[ahead, 0], dim)
                prefetch_rows(k, head, list_at(k_lists, ahead, 0), counts[ahead, 1], dim)
                prefetch_rows(v, head, list_at(k_lists, ahead, 1), counts[ahead, 1], dim_v)
            gather_rows(q, head, q_rows, count_q, dim, at_q, q_row)
            for start in range(0, max(count_k, 1), k_most):
                count = min(count_k - start, k_most)
                gather_rows_transposed(k, head, k_rows + 8 * start, count, dim, at_k, s_row)
                gather_rows(v, head, v_rows + 8 * start, count, dim_v, at_v, o_row)
                if zero:
                    clear_padding(ys[start:], count, dim, at_k, 4, s_row)
                    clear_padding(ys[start:], count, dim_v, at_v, o_row, 4)
                multiply(
                    count_q, padded(count) // LANES, dim,
                    at_q, q_row, 4, at_k, s_row, at_s, s_row, scale * LOG2_E, False,
                )  # fmt: skip
                _hide_tail(at_s, s_row, count_q, count)
                _softmax_rows(
                    at_s, s_row, count_q, count, at_tops, at_sums, start == 0,
                    at_o, o_row, deep_v // LANES,
                )  # fmt: skip
                multiply(
                    count_q, deep_v // LANES, count,
                    at_s, s_row, 4, at_v, o_row, at_o, o_row, ONE, start > 0,
                )  # fmt: skip
            for i in range(0, count_q, LANES):
                total, top = load(at_sums + 4 * i), load(at_tops + 4 * i)
                store(at_tops + 4 * i, fma(log(total), broadcast(LOG2_E), top))
                store(at_sums + 4 * i, broadcast(ONE) / total)
            scatter_rows(out, head, o_rows, count_q, dim_v, at_o, o_row, at_sums)
            for i in range(count_q):
                put(q_lists[slot, 2, i] + head * lse[5], get(at_tops + 4 * i))
    keep(q_lists)
    keep(k_lists)
    keep(scratch)


@part
def _row_statistics(head, lse: LAYOUT, lse_rows, count, at_lse, grad, out, row, columns, at_delta):
    """Reads log-sum-exps, and computes the inner products of outputs and their gradients."""
    for i in range(count):
        put(at_lse + 4 * i, get(get_int(lse_rows + 8 * i) + head * lse[5]))
        put(at_delta + 4 * i, inner_product(grad + i * row, out + i * row, columns))


@jit
def _gradient_rows(s, dp, row, rows, columns, at_lse, at_delta):
    """Turns logits into probabilities p, and dp into ``p * (dp - delta)``, the logits' gradient."""
    for i in range(rows):
        x, dx = s + i * row, dp + i * row
        lse, delta = broadcast(get(at_lse + 4 * i)), broadcast(get(at_delta + 4 * i))
        for j in range(0, columns, LANES):
            p = exp2(load(x + 4 * j) - lse)
            store(x + 4 * j, p)
            store(dx + 4 * j, p * (load(dx + 4 * j) - delta))


@part
def _differentiate_logits(
    rows,
    columns,
    dim,
    dim_v,
    q,
    q_row,
    kt,
    grad,
    grad_row,
    vt,
    s,
    ds,
    s_row,
    scale: types.float32,
    lse,
    delta,
):
    """Probabilities of ``rows`` queries and ``columns`` keys, and the gradient of their logits."""
    vectors = padded(columns) // LANES
    multiply(rows, vectors, dim, q, q_row, 4, kt, s_row, s, s_row, scale * LOG2_E, False)
    multiply(rows, vectors, dim_v, grad, grad_row, 4, vt, s_row, ds, s_row, ONE, False)
    _hide_tail(s, s_row, rows, columns)
    _gradient_rows(s, ds, s_row, rows, columns, lse, delta)


@jit
def _sums_apart(layout, columns):
    """Whether a tensor cannot hold sums of gradients, as floats in whole vectors."""
    return layout[0] != 0 or columns % LANES != 0


@jit
def _backward_items(
    begin, end, per_task, group, keys_too,
    sizes, q_map, k_map, zero, scale, queries, keys, routing,
):  # fmt: skip
    """Gradients of queries and, where a task is all of a group of heads, of keys and values.

    Without ``keys_too``, the inner products of outputs and their gradients are written instead.
    """
    heads, dim, dim_v, topk = sizes
    q, grad, out, dq, lse, delta = queries
    k, v, dk, dv = keys
    height, width = k_map[0], k_map[1]
    area, longest = q_map[4] * q_map[5], topk * k_map[4] * k_map[5]
    q_most, k_most = min(area, QUERIES), min(padded(longest), KEYS)
    deep, deep_v = padded(dim), padded(dim_v)
    items, groups = count_items(q_map), (heads + group - 1) // group

    q_tokens, k_tokens = np.empty((2, 2, area), np.int64), np.empty((2, 2, longest), np.int64)
    q_lists = np.empty((2, 6, padded(q_most)), np.int64)
    k_lists = np.empty((2, 4, padded(longest)), np.int64)
    counts = np.empty((2, 2), np.int64)
    scratch = np.empty(
        2 * q_most * (deep + deep_v + k_most) + k_most * (3 * deep + 2 * deep_v)
        + 3 * padded(q_most),
        np.float32,
    )  # fmt: skip
    q_row, o_row, s_row = 4 * deep, 4 * deep_v, 4 * k_most
    at_q = np.int64(scratch.ctypes.data)
    at_dq = at_q + q_most * q_row
    at_grad = at_dq + q_most * q_row
    at_out = at_grad + q_most * o_row
    at_s = at_out + q_most * o_row
    at_ds = at_s + q_most * s_row
    at_k = at_ds + q_most * s_row
    at_dk = at_k + k_most * q_row
    at_dv = at_dk + k_most * q_row
    at_kt = at_dv + k_most * o_row
    at_vt = at_kt + deep * s_row
    at_lse = at_vt + deep_v * s_row
    at_delta = at_lse + 4 * padded(q_most)
    at_scales = at_delta + 4 * padded(q_most)
    for i in range(q_most):
        put(at_scales + 4 * i, scale)

    dk_apart, dv_apart = keys_too and _sums_apart(dk, dim), keys_too and _sums_apart(dv, dim_v)
    dk_sums = np.empty(height * width * deep if dk_apart else 0, np.float32)
    dv_sums = np.empty(height * width * deep_v if dv_apart else 0, np.float32)
    at_dk_sums, at_dv_sums = np.int64(dk_sums.ctypes.data), np.int64(dv_sums.ctypes.data)
    to_dk = (0, at_dk_sums, 0, width * q_row, q_row, 0) if dk_apart else dk
    to_dv = (0, at_dv_sums, 0, width * o_row, o_row, 0) if dv_apart else dv
    places = (k, v, to_dk, to_dv)

    for task in range(begin * per_task, end * per_task):
        for other in range(
            task if task == begin * per_task else task + 1, min(task + 2, end * per_task)
        ):
            slot, owner = other % 2, other // items
            item = owner // groups * items + other % items
            counts[slot, 0] = list_queries(item, q_map, queries, q_tokens[slot], q_lists[slot])
            counts[slot, 1] = list_keys(
                item, topk, q_map, k_map, zero, places, routing, k_tokens[slot], k_lists[slot]
            )
        slot, ahead = task % 2, 1 - task % 2
        count_q, count_k, ys = counts[slot, 0], counts[slot, 1], k_tokens[slot, 0]
        batch = task // items // groups
        first = task // items % groups * group
        last = min(first + group, heads)
        if keys_too and task % items == 0:
            for head in range(first, last):
                clear_map(to_dk, batch, head, height, width, dim)
                clear_map(to_dv, batch, head, height, width, dim_v)
        for head in range(first, last if count_q > 0 else first):
            if task + 1 < end * per_task and counts[ahead, 0] >= LANES:
                prefetch_rows(q, head, list_at(q_lists, ahead, 0), counts[ahead, 0], dim)
                prefetch_rows(grad, head, list_at(q_lists, ahead, 1), counts[ahead, 0], dim_v)
                prefetch_rows(out, head, list_at(q_lists, ahead, 2), counts[ahead, 0], dim_v)
                prefetch_rows(k, head, list_at(k_lists, ahead, 0), counts[ahead, 1], dim)
                prefetch_rows(v, head, list_at(k_lists, ahead, 1), counts[ahead, 1], dim_v)
            gather_rows(q, head, list_at(q_lists, slot, 0), count_q, dim, at_q, q_row)
            gather_rows(grad, head, list_at(q_lists, slot, 1), count_q, dim_v, at_grad, o_row)
            gather_rows(out, head, list_at(q_lists, slot, 2), count_q, dim_v, at_out, o_row)
            _row_statistics(
                head, lse, list_at(q_lists, slot, 4), count_q, at_lse,
                at_grad, at_out, o_row, deep_v, at_delta,
            )  # fmt: skip
            for start in range(0, max(count_k, 1), k_most):
                count = min(count_k - start, k_most)
                k_rows, v_rows = list_at(k_lists, slot, 0), list_at(k_lists, slot, 1)
                gather_rows(k, head, k_rows + 8 * start, count, dim, at_k, q_row)
                gather_rows_transposed(k, head, k_rows + 8 * start, count, dim, at_kt, s_row)
                gather_rows_transposed(v, head, v_rows + 8 * start, count, dim_v, at_vt, s_row)
                if zero:
                    clear_padding(ys[start:], count, dim, at_k, q_row, 4)
                    clear_padding(ys[start:], count, dim, at_kt, 4, s_row)
                    clear_padding(ys[start:], count, dim_v, at_vt, 4, s_row)
                _differentiate_logits(
                    count_q, count, dim, dim_v, at_q, q_row, at_kt, at_grad, o_row, at_vt,
                    at_s, at_ds, s_row, scale, at_lse, at_delta,
                )  # fmt: skip
                multiply(
                    count_q, deep // LANES, count,
                    at_ds, s_row, 4, at_k, q_row, at_dq, q_row, ONE, start > 0,
                )  # fmt: skip
                if keys_too:
                    multiply(
                        count, deep // LANES, count_q,
                        at_ds, 4, s_row, at_q, q_row, at_dk, q_row, scale, False,
                    )  # fmt: skip
                    multiply(
                        count, deep_v // LANES, count_q,
                        at_s, 4, s_row, at_grad, o_row, at_dv, o_row, ONE, False,
                    )  # fmt: skip
                    dk_rows, dv_rows = list_at(k_lists, slot, 2), list_at(k_lists, slot, 3)
                    add_rows(at_dk, q_row, count, dim, ys[start:], to_dk, head, dk_rows + 8 * start)
                    add_rows(
                        at_dv, o_row, count, dim_v, ys[start:], to_dv, head, dv_rows + 8 * start
                    )
            scatter_rows(dq, head, list_at(q_lists, slot, 3), count_q, dim, at_dq, q_row, at_scales)
            if not keys_too:
                for i in range(count_q):
                    put(q_lists[slot, 5, i] + head * delta[5], get(at_delta + 4 * i))
        if task % items == items - 1:
            for head in range(first, last):
                if dk_apart:
                    copy_map(at_dk_sums, dk, batch, head, height, width, dim)
                if dv_apart:
                    copy_map(at_dv_sums, dv, batch, head, height, width, dim_v)
    keep(q_lists)
    keep(k_lists)
    keep(scratch)
    keep(dk_sums)
    keep(dv_sums)


@jit
def _backward_regions(begin, end, sizes, q_map, k_map, zero, scale, queries, keys, starts, users):
    """Gradients of the keys and values of a region and head, from the queries that chose it."""
    heads, dim, dim_v, _ = sizes
    q, grad, lse, delta = queries
    k, v, dk, dv = keys
    area, q_area, parts = k_map[4] * k_map[5], q_map[4] * q_map[5], count_parts(q_map)
    q_most, k_most = min(q_area, QUERIES), min(padded(area), KEYS)
    deep, deep_v = padded(dim), padded(dim_v)

    q_tokens, k_tokens = np.empty((2, q_area), np.int64), np.empty((2, area), np.int64)
    q_lists = np.empty((1, 4, padded(q_most)), np.int64)
    k_lists = np.empty((1, 4, padded(area)), np.int64)
    scratch = np.empty(
        q_most * (deep + deep_v + 2 * k_most) + k_most * 3 * (deep + deep_v)
        + 2 * padded(q_most) + k_most,
        np.float32,
    )  # fmt: skip
    q_row, o_row, s_row = 4 * deep, 4 * deep_v, 4 * k_most
    at_q = np.int64(scratch.ctypes.data)
    at_grad = at_q + q_most * q_row
    at_s = at_grad + q_most * o_row
    at_ds = at_s + q_most * s_row
    at_kt = at_ds + q_most * s_row
    at_vt = at_kt + deep * s_row
    at_dk = at_vt + deep_v * s_row
    at_dv = at_dk + k_most * q_row
    at_part = at_dv + k_most * o_row
    at_lse = at_part + k_most * (q_row + o_row)
    at_delta = at_lse + 4 * padded(q_most)
    at_ones = at_delta + 4 * padded(q_most)
    for i in range(k_most):
        put(at_ones + 4 * i, ONE)

    for task in range(begin, end):
        index, head = divmod(task, heads)
        batch, region = divmod(index, count_regions(k_map))
        tokens = list_tokens(region, k_map, False, k_tokens[0], k_tokens[1], 0)
        for i in range(len(keys)):
            locate(keys[i], batch, k_tokens[0], k_tokens[1], tokens, k_lists[0, i])
        first, last = get_int(starts + 8 * index), get_int(starts + 8 * index + 8)
        for start in range(0, tokens, k_most):
            count = min(tokens - start, k_most)
            gather_rows_transposed(
                k, head, list_at(k_lists, 0, 0) + 8 * start, count, dim, at_kt, s_row
            )
            gather_rows_transposed(
                v, head, list_at(k_lists, 0, 1) + 8 * start, count, dim_v, at_vt, s_row
            )
            clear(at_dk, count * deep)
            clear(at_dv, count * deep_v)
            for use in range(first * parts, last * parts):
                item = get_int(users + 8 * (use // parts)) * parts + use % parts
                count_q = list_queries(item, q_map, queries, q_tokens, q_lists[0])
                if count_q <= 0:
                    continue
                gather_rows(q, head, list_at(q_lists, 0, 0), count_q, dim, at_q, q_row)
                gather_rows(grad, head, list_at(q_lists, 0, 1), count_q, dim_v, at_grad, o_row)
                for i in range(count_q):
                    put(at_lse + 4 * i, get(q_lists[0, 2, i] + head * lse[5]))
                    put(at_delta + 4 * i, get(q_lists[0, 3, i] + head * delta[5]))
                _differentiate_logits(
                    count_q, count, dim, dim_v, at_q, q_row, at_kt, at_grad, o_row, at_vt,
                    at_s, at_ds, s_row, scale, at_lse, at_delta,
                )  # fmt: skip
                multiply(
                    count, deep // LANES, count_q,
                    at_ds, 4, s_row, at_q, q_row, at_part, q_row, scale, False,
                )  # fmt: skip
                add(at_part, q_row, count, deep, at_dk, q_row)
                multiply(
                    count, deep_v // LANES, count_q,
                    at_s, 4, s_row, at_grad, o_row, at_part, o_row, ONE, False,
                )  # fmt: skip
                add(at_part, o_row, count, deep_v, at_dv, o_row)
            dk_rows, dv_rows = list_at(k_lists, 0, 2), list_at(k_lists, 0, 3)
            scatter_rows(dk, head, dk_rows + 8 * start, count, dim, at_dk, q_row, at_ones)
            scatter_rows(dv, head, dv_rows + 8 * start, count, dim_v, at_dv, o_row, at_ones)
    keep(q_lists)
    keep(k_lists)
    keep(scratch)
