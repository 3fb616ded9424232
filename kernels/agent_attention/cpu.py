"""Agent attention on the CPU: blocks of tokens against all agents of a head.

A block of logits has agents as rows and tokens as columns in both softmaxes: the few agents need
not be padded to vectors, and queries and keys have the same products, with the softmax down the
columns for the one and along the rows for the other. The bias of a block is put together from its
parts in scratch memory, once for all samples of a task.

A task has a few heads, of which tokens have the rows side by side: these are brought in as one row,
for memory is fast only where neighbours are read together.
"""

import numpy as np
import torch
from numba import types

from .._blocks import (
    clear,
    copy_in_transposed,
    copy_out,
    inner_product,
    padded,
    scale_row,
)
from .._elements import store_as
from .._jit import inline, jit, part
from .._layouts import layout, with_contiguous_rows
from .._memory import empty
from .._threads import parallel_for
from .._vectors import (
    LANES,
    broadcast,
    exp,
    fma,
    get,
    load,
    load_lanes,
    log,
    maximum,
    put,
    reduce_add,
    reduce_max,
    store,
)
from ._bias import (
    DENSE,
    IN_PARTS,
    add_to_bias_sums,
    bias_arguments,
    bias_in,
    bias_sums,
    clear_bias_sums,
    fill_bias,
)
from ._matrices import FLOAT, ONE, Sums, add_up, empty_floats, product
from ._tasks import backward_places, forward_places, share_out, sizes_of, task_of
from ._tokens import (
    agents_in,
    are_in_place,
    head_of,
    prefetch_next,
    rows_out,
    tokens_in,
    tokens_out,
)

LOWEST = np.float32(-3e38)
"""Below all finite logits; -inf minus it is still -inf."""
TINY = np.float32(1e-30)
"""What a softmax over nothing but -inf is divided by: it gives zeros."""
FEWEST_IN_LANES = 13
"""Fewest agents that are worth a vector of 16."""
ROWS_OF_VALUES = 256
"""Fewest rows of values that are worth a thread."""


def _by_token(batch, heads, tokens, dim, dtype):
    """An uninitialised (B, heads, tokens, dim) in the order (B, tokens, heads, dim)."""
    return empty(batch, tokens, heads, dim, dtype=dtype).transpose(1, 2)


def _empty_by_token(*tensors):
    return tuple(_by_token(*x.shape, x.dtype) for x in tensors)


def forward(q, k, v, agents, key_bias, query_bias, scales):
    """Output, the agents' values, and log-sum-exp of the logits of agents and of queries."""
    q, k, v, agents = with_contiguous_rows(q, k, v, agents)
    batch, heads, count, _ = agents.shape
    dim = v.shape[3]

    sizes = sizes_of(agents, k, v)
    split = share_out(sizes)
    bias, owner = bias_arguments(key_bias, k.shape[2], count, split.block)
    places = forward_places(sizes, split, bias[-1][-1])
    parts = empty_floats(split.chunks, batch, heads, count, dim)
    lse_parts = empty_floats(split.chunks, batch, heads, count)
    parallel_for(
        _aggregate,
        split.tasks,
        sizes,
        tuple(split),
        places,
        scales[0],
        *(layout(agents), layout(k), layout(v)),
        bias,
        parts.data_ptr(),
        lse_parts.data_ptr(),
        scratch=places[-1],
    )
    values, key_lse = parts[0], lse_parts[0]
    if split.chunks > 1:
        values, key_lse = torch.empty_like(values), torch.empty_like(key_lse)
        rows = batch * heads * count
        parallel_for(
            _combine,
            rows,
            *(split.chunks, rows, dim),
            *(x.data_ptr() for x in (parts, lse_parts, values, key_lse)),
            min_chunk=ROWS_OF_VALUES,
        )

    sizes = sizes_of(agents, q, v)
    split = share_out(sizes)
    bias, owner = bias_arguments(query_bias, q.shape[2], count, split.block)
    places = forward_places(sizes, split, bias[-1][-1])
    out = _by_token(*q.shape[:3], dim, v.dtype)
    query_lse = empty_floats(*q.shape[:3])
    parallel_for(
        _broadcast,
        split.tasks,
        sizes,
        tuple(split),
        places,
        scales[1],
        *(layout(agents), layout(q), layout(out)),
        bias,
        values.data_ptr(),
        query_lse.data_ptr(),
        scratch=places[-1],
    )
    return out, values, key_lse, query_lse


def backward(
    grad,
    values,
    key_lse,
    query_lse,
    q,
    k,
    v,
    agents,
    key_bias,
    query_bias,
    scales,
    allocate=_empty_by_token,
):
    """Gradients of q, k, v and agents, and of the parts of both biases.

    Those of q, k and v are in what ``allocate`` makes for them.
    """
    grad, q, k, v, agents = with_contiguous_rows(grad, q, k, v, agents)
    dq, dk, dv = allocate(q, k, v)
    query_split, key_split = (share_out(sizes_of(agents, *x)) for x in ((q, grad), (k, v)))
    (key_sums, key_sizes), (query_sums, query_sizes) = (
        bias_sums(key_bias, key_split),
        bias_sums(query_bias, query_split),
    )
    agent_size, value_size = 4 * agents.numel(), 4 * values.numel()
    agent_parts = query_split.chunks + key_split.chunks
    sizes = agent_parts * agent_size, *key_sizes, *query_sizes, query_split.chunks * value_size
    memory = [empty_floats(size // 4) for size in sizes]
    places = [x.data_ptr() for x in memory]
    value_sums = places[9]

    def run(of_queries, split, scale, x, y, dx, dy, bias_parts, bias_places, lse, agent_sums):
        bias, owner = bias_arguments(bias_parts, x.shape[2], agents.shape[2], split.block)
        shape = sizes_of(agents, x, y)
        scratch = backward_places(shape, split, bias[-1][-1])
        parallel_for(
            _gradients,
            split.tasks,
            of_queries,
            shape,
            tuple(split),
            scratch,
            scale,
            *(layout(agents), layout(x), layout(y), layout(dx), layout(dy)),
            bias,
            tuple(bias_places),
            values.data_ptr(),
            lse.data_ptr(),
            agent_sums,
            value_sums,
            query_split.chunks,
            scratch=scratch[-1],
        )

    run(
        *(True, query_split, scales[1], q, grad, dq, dq),
        *(query_bias, places[5:9], query_lse, places[0]),
    )
    run(
        *(False, key_split, scales[0], k, v, dk, dv),
        *(key_bias, places[1:5], key_lse, places[0] + query_split.chunks * agent_size),
    )
    dim = agents.shape[3]
    rows = (agents.numel() // max(dim, 1), 1, 1)
    agent_sums = Sums(agent_parts, agent_size, rows, (4 * dim, 0, 0), dim)
    sums = agent_sums, *key_sums, *query_sums
    likes = agents, *key_bias, *query_bias
    wanted = [x for x in zip(places[:9], sums, likes, strict=True) if x[1] is not None]
    results = iter(add_up(*zip(*wanted, strict=True)))
    grads = dq, dk, dv, next(results)
    key_grads, query_grads = [
        [x if x is None else next(results) for x in parts] for parts in (key_bias, query_bias)
    ]
    return grads, key_grads, query_grads


@inline
def _are_in_lanes(count):
    """Whether agents are the columns of products that are then transposed.

    Where they about fill a vector, there is less to transpose in them than in tokens.
    """
    return FEWEST_IN_LANES <= count <= LANES


@part
def _logits(agents, tokens, tokens_row, rows, count, dim, scale: types.float32, turned, s, row):
    """Products (agents, rows) of a head's agents and a block of its tokens, both given as floats.

    Columns are filled up to whole vectors with zeros. ``turned`` is memory for what is transposed.
    """
    a_row = 4 * padded(dim)
    if _are_in_lanes(count):
        products = turned + 64 * padded(dim)
        copy_in_transposed(FLOAT, agents, a_row, count, dim, turned, 64)
        left = tokens, tokens_row, 4
        product(rows, 1, dim, left, (turned, 64), (products, 64), scale, False)
        copy_in_transposed(FLOAT, products, 64, rows, LANES, s, row)
    else:
        copy_in_transposed(FLOAT, tokens, tokens_row, rows, dim, turned, row)
        left, vectors = (agents, a_row, 4), padded(rows) // LANES
        product(count, vectors, dim, left, (turned, row), (s, row), scale, False)


@part
def _softmax_rows(s, bias, row, count, vectors, tops, totals, sums, sums_row, first: types.boolean):
    """Goes on with the softmax of each agent by a block of logits, which become weights.

    ``tops`` are the maxima so far, which weights are relative to, ``totals`` the sums of weights by
    lanes, and ``sums`` the sums of weighted values; there are none of them before the first block.
    """
    for i in range(count):
        at, extra, total_at = s + i * row, bias + i * row, totals + 64 * i
        before = LOWEST if first else get(tops + 4 * i)
        top = broadcast(before)
        for j in range(0, 64 * vectors, 64):
            top = maximum(top, load(at + j) + load(extra + j))
        largest = reduce_max(top)
        shift = broadcast(largest)
        total = broadcast(np.float32(0))
        if not first:
            decay = exp(broadcast(before) - shift)
            total = load(total_at) * decay
            if largest > before:
                for j in range(0, sums_row, 64):
                    place = sums + i * sums_row + j
                    store(place, load(place) * decay)
        for j in range(0, 64 * vectors, 64):
            value = exp(load(at + j) + load(extra + j) - shift)
            total = total + value
            store(at + j, value)
        store(total_at, total)
        put(tops + 4 * i, largest)


@part
def _softmax_columns(s, bias, row, count, tokens, lse):
    """Softmax over agents of a block of logits (agents, tokens); writes the log-sum-exp."""
    for j in range(0, 4 * tokens, 64):
        top = broadcast(LOWEST)
        for i in range(j, j + count * row, row):
            top = maximum(top, load(s + i) + load(bias + i))
        total = broadcast(np.float32(0))
        for i in range(j, j + count * row, row):
            value = exp(load(s + i) + load(bias + i) - top)
            total = total + value
            store(s + i, value)
        total = maximum(total, broadcast(TINY))
        factor = broadcast(ONE) / total
        for i in range(j, j + count * row, row):
            store(s + i, load(s + i) * factor)
        store_as(FLOAT, lse + j, top + log(total), tokens - j // 4)


@jit
def _aggregate(begin, end, scratch, sizes, split, places, scale, agents, k, v, bias, values, lse):
    """The agents' values by a chunk of keys, and the log-sum-exp of its logits."""
    batch, all_heads, count, _, dim, dim_v = sizes
    wide, rows = padded(dim_v), padded(count)
    block, row, line = split[2], split[3], split[5]
    a_size, v_row, v_size = 4 * rows * padded(dim), 4 * wide, 4 * rows * wide
    at_agents, at_values, totals = scratch, scratch + places[1], scratch + places[2]
    tops, at_s, at_k = scratch + places[3], scratch + places[4], scratch + places[5]
    at_v, turned = scratch + places[6], scratch + places[7]
    at_bias, parts = scratch + places[8], scratch + places[9]
    for task in range(begin, end):
        _, chunk, heads, samples, tokens = task_of(task, sizes, split)
        agents_in(agents, samples, heads, count, dim, at_agents)
        bias_in(bias, heads, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, first = min(block, tokens[1] - start), start == tokens[0]
            # Logits of -inf fill up the last vector.
            fill = np.float32(-np.inf)
            fill_bias(bias, heads, count, start, length, fill, parts, at_bias, row)
            for b in range(samples[0], samples[1]):
                prefetch_next(k, b, heads, start, samples, tokens, block, dim)
                tokens_in(k, b, heads, start, length, dim, at_k, line)
                prefetch_next(v, b, heads, start, samples, tokens, block, dim_v)
                tokens_in(v, b, heads, start, length, dim_v, at_v, line)
                for h in range(heads[1]):
                    slot = (b - samples[0]) * heads[1] + h
                    a, sums = at_agents + slot * a_size, at_values + slot * v_size
                    own = at_k + 4 * h * dim
                    _logits(a, own, line, length, count, dim, scale, turned, at_s, row)
                    _softmax_rows(
                        at_s,
                        at_bias + h * rows * row,
                        row,
                        count,
                        padded(length) // LANES,
                        tops + slot * 4 * rows,
                        totals + slot * 64 * rows,
                        sums,
                        v_row,
                        first,
                    )
                    weights, out = (at_s, row, 4), (sums, v_row)
                    y = at_v + 4 * h * dim_v, line
                    product(count, wide // LANES, length, weights, y, out, ONE, not first)
        for b in range(samples[0], samples[1]):
            for h in range(heads[1]):
                slot = (b - samples[0]) * heads[1] + h
                place = ((chunk * batch + b) * all_heads + heads[0] + h) * count
                for i in range(count):
                    total = max(reduce_add(load(totals + 64 * (slot * rows + i))), TINY)
                    scale_row(at_values + slot * v_size + i * v_row, wide, ONE / total)
                    top = get(tops + 4 * (slot * rows + i))
                    put(lse + 4 * (place + i), top + np.log(total))
                source, target = at_values + slot * v_size, values + 4 * place * dim_v
                copy_out(FLOAT, source, v_row, count, dim_v, target, 4 * dim_v)


@jit
def _combine(begin, end, chunks, rows, dim, values, lse, out, out_lse):
    """Puts the values and log-sum-exps of chunks of keys together."""
    for i in range(begin, end):
        top = np.float32(-np.inf)
        for c in range(chunks):
            top = max(top, get(lse + 4 * (c * rows + i)))
        total = np.float32(0)
        for c in range(chunks):
            total += np.exp(get(lse + 4 * (c * rows + i)) - top)
        put(out_lse + 4 * i, top + np.log(total))
        for c in range(chunks):
            share = broadcast(np.float32(np.exp(get(lse + 4 * (c * rows + i)) - top) / total))
            for j in range(0, dim, LANES):
                place = out + 4 * (i * dim + j)
                part = load_lanes(values + 4 * ((c * rows + i) * dim + j), dim - j)
                before = load_lanes(place, dim - j) if c > 0 else broadcast(np.float32(0))
                store_as(FLOAT, place, fma(part, share, before), dim - j)


@jit
def _broadcast(begin, end, scratch, sizes, split, places, scale, agents, q, out, bias, values, lse):
    """A chunk of the output, and the log-sum-exp of its logits."""
    _, all_heads, count, all_tokens, dim, dim_v = sizes
    wide, rows = padded(dim_v), padded(count)
    block, row, line = split[2], split[3], split[5]
    a_size, v_row, v_size = 4 * rows * padded(dim), 4 * wide, 4 * rows * wide
    at_agents, at_values = scratch, scratch + places[1]
    at_s, at_q, at_out = scratch + places[4], scratch + places[5], scratch + places[6]
    turned, at_bias, parts = scratch + places[7], scratch + places[8], scratch + places[9]
    matrix = 4 * count * dim_v
    values = (FLOAT, values, all_heads * matrix, matrix, 4 * dim_v, 4)
    for task in range(begin, end):
        _, _, heads, samples, tokens = task_of(task, sizes, split)
        agents_in(agents, samples, heads, count, dim, at_agents)
        agents_in(values, samples, heads, count, dim_v, at_values)
        bias_in(bias, heads, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, fill = min(block, tokens[1] - start), np.float32(0)
            fill_bias(bias, heads, count, start, length, fill, parts, at_bias, row)
            for b in range(samples[0], samples[1]):
                prefetch_next(q, b, heads, start, samples, tokens, block, dim)
                prefetch_next(out, b, heads, start, samples, tokens, block, dim_v)
                tokens_in(q, b, heads, start, length, dim, at_q, line)
                y = rows_out(out, b, heads, start, dim_v, at_out, line)
                for h in range(heads[1]):
                    slot = (b - samples[0]) * heads[1] + h
                    a, v = at_agents + slot * a_size, (at_values + slot * v_size, v_row)
                    own = at_q + 4 * h * dim
                    _logits(a, own, line, length, count, dim, scale, turned, at_s, row)
                    place = lse + 4 * ((b * all_heads + heads[0] + h) * all_tokens + start)
                    _softmax_columns(at_s, at_bias + h * rows * row, row, count, length, place)
                    weights, own = (at_s, 4, row), head_of(y, h)
                    product(length, wide // LANES, count, weights, v, own, ONE, False)
                if not are_in_place(out, dim_v):
                    tokens_out(out, b, heads, start, length, dim_v, at_out, line)


@jit
def _add_rows(source, rows, columns, target, target_row):
    """Adds contiguous rows of floats to others, which are in whole vectors."""
    for i in range(rows):
        for j in range(0, columns, LANES):
            place = target + i * target_row + 4 * j
            value = load_lanes(source + 4 * (i * columns + j), columns - j)
            store(place, load(place) + value)


@part
def _row_gradients(s, g, bias, bias_grad, row, count, vectors, lse, delta):
    """Turns logits into weights, and their gradients into those of logits, agent by agent."""
    for i in range(count):
        shift, mean = broadcast(get(lse + 4 * i)), broadcast(get(delta + 4 * i))
        for j in range(i * row, i * row + 64 * vectors, 64):
            weight = exp(load(s + j) + load(bias + j) - shift)
            slope = weight * (load(g + j) - mean)
            store(s + j, weight)
            store(g + j, slope)
            store(bias_grad + j, load(bias_grad + j) + slope)


@part
def _column_gradients(s, g, bias, bias_grad, row, count, tokens, lse):
    """Turns logits into weights, and their gradients into those of logits, token by token."""
    for j in range(0, 4 * tokens, 64):
        shift = load_lanes(lse + j, tokens - j // 4)
        mean = broadcast(np.float32(0))
        for i in range(j, j + count * row, row):
            weight = exp(load(s + i) + load(bias + i) - shift)
            mean = fma(weight, load(g + i), mean)
            store(s + i, weight)
        for i in range(j, j + count * row, row):
            slope = load(s + i) * (load(g + i) - mean)
            store(g + i, slope)
            store(bias_grad + i, load(bias_grad + i) + slope)


@jit
def _gradients(
    begin,
    end,
    scratch,
    of_queries,
    sizes,
    split,
    places,
    scale,
    agents,
    x,
    y,
    dx,
    dy,
    bias,
    part_sums,
    values,
    lse,
    agent_sums,
    value_sums,
    value_parts,
):
    """Gradients by a chunk of queries, or by a chunk of keys.

    Of queries, ``x`` are the queries and ``y`` the gradients of the output; of the agents' values
    the pass leaves the gradient's sums over chunks in ``value_sums``. Of keys, ``x`` and ``y`` are
    keys and values, and the gradients ``value_sums`` are what the values are weighed by. Sums of
    the agents' gradients are left in ``agent_sums``.
    """
    batch, all_heads, count, all_tokens, dim, dim_v = sizes
    deep, wide, rows, block, row = padded(dim), padded(dim_v), padded(count), split[2], split[3]
    a_row, v_row, a_size, v_size = 4 * deep, 4 * wide, 4 * rows * deep, 4 * rows * wide
    slots, line, chunks, tile = split[0] * split[4], split[5], split[7], rows * row
    at_agents, at_values, a_sums = scratch, scratch + places[1], scratch + places[2]
    v_sums, deltas, at_s = scratch + places[3], scratch + places[4], scratch + places[5]
    at_g, turned = scratch + places[6], scratch + places[7]
    at_x, at_y = scratch + places[8], scratch + places[9]
    at_dx, at_dy = scratch + places[10], scratch + places[11]
    at_bias, bias_grad, parts = scratch + places[12], scratch + places[13], scratch + places[14]
    matrix = 4 * count * dim_v
    values = (FLOAT, values, all_heads * matrix, matrix, 4 * dim_v, 4)
    factor = np.float32(scale)
    for task in range(begin, end):
        g, chunk, heads, samples, tokens = task_of(task, sizes, split)
        agents_in(agents, samples, heads, count, dim, at_agents)
        bias_in(bias, heads, count, parts)
        if tokens[0] == tokens[1]:
            # No block is to come, the first of which writes the sums.
            clear(a_sums, slots * (a_size + v_size) // 4)
        if of_queries:
            agents_in(values, samples, heads, count, dim_v, at_values)
        else:
            # No sums of values' gradients are wanted: their memory lends itself to the values.
            agents_in(values, samples, heads, count, dim_v, v_sums)
            clear(at_values, slots * v_size // 4)
            for b in range(samples[0], samples[1]):
                for h in range(heads[1]):
                    slot = (b - samples[0]) * heads[1] + h
                    target = at_values + slot * v_size
                    for part in range(value_parts):
                        place = (part * batch + b) * all_heads + heads[0] + h
                        _add_rows(value_sums + place * matrix, count, dim_v, target, v_row)
                    for i in range(slot * rows, slot * rows + count):
                        delta = inner_product(at_values + i * v_row, v_sums + i * v_row, wide)
                        put(deltas + 4 * i, delta)
        part = (g if bias[0][0] == DENSE else g * chunks + chunk) * all_heads + heads[0]
        for h in range(heads[1]):
            clear_bias_sums(bias, part_sums, part + h, count)
        for start in range(tokens[0], tokens[1], block):
            length, later = min(block, tokens[1] - start), start > tokens[0]
            vectors = padded(length) // LANES
            fill = np.float32(0) if of_queries else np.float32(-np.inf)
            fill_bias(bias, heads, count, start, length, fill, parts, at_bias, row)
            clear(bias_grad, heads[1] * tile // 4)
            for b in range(samples[0], samples[1]):
                prefetch_next(x, b, heads, start, samples, tokens, block, dim)
                prefetch_next(dx, b, heads, start, samples, tokens, block, dim)
                tokens_in(x, b, heads, start, length, dim, at_x, line)
                prefetch_next(y, b, heads, start, samples, tokens, block, dim_v)
                tokens_in(y, b, heads, start, length, dim_v, at_y, line)
                prefetch_next(dy, b, heads, start, samples, tokens, block, dim_v)
                of_dx = rows_out(dx, b, heads, start, dim, at_dx, line)
                of_dy = rows_out(dy, b, heads, start, dim_v, at_dy, line)
                for h in range(heads[1]):
                    slot = (b - samples[0]) * heads[1] + h
                    place = b * all_heads + heads[0] + h
                    a, v = (at_agents + slot * a_size, a_row), (at_values + slot * v_size, v_row)
                    own_bias, own_grad = at_bias + h * tile, bias_grad + h * tile
                    own_x, own_y = at_x + 4 * h * dim, at_y + 4 * h * dim_v
                    _logits(a[0], own_x, line, length, count, dim, scale, turned, at_s, row)
                    _logits(v[0], own_y, line, length, count, dim_v, 1.0, turned, at_g, row)
                    if of_queries:
                        at_lse = lse + 4 * (place * all_tokens + start)
                        _column_gradients(
                            at_s, at_g, own_bias, own_grad, row, count, length, at_lse
                        )
                        weights, out = (at_s, row, 4), (v_sums + slot * v_size, v_row)
                        own = own_y, line
                        product(count, wide // LANES, length, weights, own, out, ONE, later)
                    else:
                        delta, at_lse = deltas + 4 * slot * rows, lse + 4 * place * count
                        _row_gradients(
                            at_s, at_g, own_bias, own_grad, row, count, vectors, at_lse, delta
                        )
                        weights, own = (at_s, 4, row), head_of(of_dy, h)
                        product(length, wide // LANES, count, weights, v, own, ONE, False)
                    slopes, out = (at_g, row, 4), (a_sums + slot * a_size, a_row)
                    own = own_x, line
                    product(count, deep // LANES, length, slopes, own, out, factor, later)
                    slopes, own = (at_g, 4, row), head_of(of_dx, h)
                    product(length, deep // LANES, count, slopes, a, own, factor, False)
                if not are_in_place(dx, dim):
                    tokens_out(dx, b, heads, start, length, dim, at_dx, line)
                if not (of_queries or are_in_place(dy, dim_v)):
                    tokens_out(dy, b, heads, start, length, dim_v, at_dy, line)
            for h in range(heads[1]):
                own_grad = bias_grad + h * tile
                if bias[0][0] == DENSE:
                    target = part_sums[2] + 4 * ((part + h) * count * all_tokens + start)
                    copy_out(FLOAT, own_grad, row, count, length, target, 4 * all_tokens)
                elif bias[0][0] == IN_PARTS:
                    own = parts + h * bias[6][-1]
                    add_to_bias_sums(
                        bias, part_sums, part + h, count, start, length, own, own_grad, row
                    )
        for b in range(samples[0], samples[1]):
            for h in range(heads[1]):
                slot = (b - samples[0]) * heads[1] + h
                place = ((chunk * batch + b) * all_heads + heads[0] + h) * count
                source, target = a_sums + slot * a_size, agent_sums + 4 * place * dim
                copy_out(FLOAT, source, a_row, count, dim, target, 4 * dim)
                if of_queries:
                    source, target = v_sums + slot * v_size, value_sums + 4 * place * dim_v
                    copy_out(FLOAT, source, v_row, count, dim_v, target, 4 * dim_v)
