"""Agent attention on the CPU: blocks of tokens against all agents of a head.

A block of logits has agents as rows and tokens as columns in both softmaxes: the few agents need
not be padded to vectors, and queries and keys have the same products, with the softmax down the
columns for the one and along the rows for the other. The bias of a block is put together from its
parts in scratch memory, once for all samples of a task.
"""

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from .._blocks import clear, copy_in, copy_in_transposed, copy_out, inner_product, padded, scale_row
from .._elements import store_as
from .._jit import inline, jit
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
    prefetch,
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

LOWEST = np.float32(-3e38)
"""Below all finite logits; -inf minus it is still -inf."""
TINY = np.float32(1e-30)
"""What a softmax over nothing but -inf is divided by: it gives zeros."""
FEWEST_IN_LANES = 13
"""Fewest agents that are worth a vector of 16."""
ROWS_OF_VALUES = 256
"""Fewest rows of values that are worth a thread."""
TASKS = 16
"""Roughly how many tasks a pass has, whatever the threads, for results must not depend on them."""
CROWDED = 2048
"""Rows that are a multiple of these bytes apart share a few sets of the first-level cache, where
they do not stay until they are read again."""


class _Split(NamedTuple):
    """How a pass over the tokens of a batch is shared out to tasks, each of one head."""

    group: int  # samples of a task
    chunk: int  # tokens of a task
    block: int  # tokens worked on at once
    row: int  # bytes of a row of logits
    groups: int
    chunks: int


@lru_cache(1024)
def _split(batch, heads, tokens, agents, dim):
    # A chunk has sums of the size of the agents: it must not be short.
    chunk = _even_part(tokens, max(256, 8 * agents))
    block = _even_part(chunk, max(32, min(96, 8192 // agents)))
    chunks = max(1, -(-tokens // chunk))
    # The more samples a bias is put together for, the better, while there are enough tasks.
    groups = max(1, min(batch, -(-TASKS // max(heads * chunks, 1))))
    group = max(1, min(-(-batch // groups), 8, 65536 // (agents * dim)))
    # Rows have a vector to spare, and an odd number of them, to spread over the cache's sets.
    row = 64 * ((block // LANES + 1) | 1)
    return _Split(group, chunk, block, row, -(-batch // group), chunks)


def _even_part(length, most):
    """Length of parts that are about equal, in whole vectors, and not much longer than ``most``."""
    parts = max(1, round(length / most))
    return max(LANES, padded.py_func(-(-length // parts)))


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

    split = _split(batch, heads, k.shape[2], count, dim)
    bias, owner = bias_arguments(key_bias, k.shape[2], count, split.block)
    places = _forward_places(_sizes(agents, k, v), split, bias[-1][-1])
    parts = empty_floats(split.chunks, batch, heads, count, dim)
    lse_parts = empty_floats(split.chunks, batch, heads, count)
    parallel_for(
        _aggregate,
        split.groups * heads * split.chunks,
        _sizes(agents, k, v),
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

    split = _split(batch, heads, q.shape[2], count, dim)
    bias, owner = bias_arguments(query_bias, q.shape[2], count, split.block)
    places = _forward_places(_sizes(agents, q, v), split, bias[-1][-1])
    out = _by_token(*q.shape[:3], dim, v.dtype)
    query_lse = empty_floats(*q.shape[:3])
    parallel_for(
        _broadcast,
        split.groups * heads * split.chunks,
        _sizes(agents, q, v),
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
    query_split, key_split = [_split(*x.shape[:3], agents.shape[2], v.shape[3]) for x in (q, k)]
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
        shape = _sizes(agents, x, y)
        scratch = _backward_places(shape, split, bias[-1][-1])
        parallel_for(
            _gradients,
            split.groups * agents.shape[1] * split.chunks,
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


def _sizes(agents, x, y):
    return *agents.shape[:3], *x.shape[2:], y.shape[3]


@lru_cache(1024)
def _forward_places(sizes, split, bias_size):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample: agents, values, sums of weights by lanes, maxima. Then logits, a transposed
    block of tokens, a block of rows, the bias of a block, and the bias in parts.
    """
    a_size, v_size, tile, rows, deep, wide = _matrix_sizes(sizes, split)
    each = a_size, v_size, 64 * rows, 4 * rows
    shared = tile, deep * split.row, 4 * wide * split.block, tile, bias_size
    return (0, *accumulate((*(split.group * size for size in each), *shared)))


@lru_cache(1024)
def _backward_places(sizes, split, bias_size):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample: agents, values, gradients of both, mean gradients of logits. Then logits, their
    gradients, a transposed block of tokens, a block of rows, the bias of a block and its gradient,
    and the bias in parts.
    """
    a_size, v_size, tile, rows, deep, wide = _matrix_sizes(sizes, split)
    most = max(deep, wide)
    each = a_size, v_size, a_size, v_size, 4 * rows
    shared = tile, tile, most * split.row, 4 * most * split.block, tile, tile
    return (0, *accumulate((*(split.group * size for size in each), *shared, bias_size)))


def _matrix_sizes(sizes, split):
    """Bytes of a sample's agents and values, and of logits; and padded agents and dimensions."""
    rows, deep, wide = (padded.py_func(sizes[i]) for i in (2, 4, 5))
    return 4 * rows * deep, 4 * rows * wide, rows * split.row, rows, deep, wide


@inline
def _task(task, sizes, split):
    """Group, head and chunk of a task, and its ranges of samples and tokens."""
    group, chunk, _, _, _, chunks = split
    i, c = divmod(task, chunks)
    g, head = divmod(i, sizes[1])
    samples = g * group, min((g + 1) * group, sizes[0])
    return g, head, c, samples, (c * chunk, min((c + 1) * chunk, sizes[3]))


@inline
def _at(x, sample, head, token):
    """Address of a row of a tensor."""
    return x[1] + sample * x[2] + head * x[3] + token * x[4]


@jit
def _prefetch_next(x, sample, head, start, samples, tokens, block, columns):
    """Begins to bring in the rows that a task turns to next, which hardware does not foresee."""
    start = start if sample + 1 < samples[1] else start + block
    sample = sample + 1 if sample + 1 < samples[1] else samples[0]
    size = columns * (4 if x[0] == FLOAT else 2)
    for i in range(start, min(start + block, tokens[1])):
        source = _at(x, sample, head, i)
        for j in range(0, size, 64):
            prefetch(source + j)


@jit
def _rows_in(x, sample, head, first, rows, columns, buffer):
    """Address and stride of rows of floats: those of the tensor itself, or a copy in the buffer."""
    source = _at(x, sample, head, first)
    if x[0] == FLOAT and columns % LANES == 0 and x[4] % CROWDED != 0:
        return source, x[4]
    row = 4 * padded(columns)
    copy_in(x[0], source, x[4], rows, columns, buffer, row)
    return buffer, row


@jit
def _product_out(x, sample, head, first, rows, columns, depth, a, b, scale, buffer):
    """Writes ``rows`` of a tensor: ``scale`` times A transposed, (rows, depth), times B."""
    target = _at(x, sample, head, first)
    vectors = padded(columns) // LANES
    if x[0] == FLOAT and columns % LANES == 0:
        product(rows, vectors, depth, (a[0], 4, a[1]), b, (target, x[4]), scale, False)
    else:
        row = 64 * vectors
        product(rows, vectors, depth, (a[0], 4, a[1]), b, (buffer, row), scale, False)
        copy_out(x[0], buffer, row, rows, columns, target, x[4])


@jit
def _logits(agents, x, sample, head, first, rows, count, dim, scale, transposed, s, row):
    """Products (agents, rows) of agents, given as floats, and a block of tokens of ``x``.

    Columns are filled up to whole vectors with zeros. ``transposed`` is memory for a block of
    tokens, transposed; where agents about fill a vector, there is less to transpose in the agents
    and in the products.
    """
    source = _at(x, sample, head, first)
    if x[0] == FLOAT and FEWEST_IN_LANES <= count <= LANES:
        turned, products = transposed, transposed + 64 * padded(dim)
        copy_in_transposed(FLOAT, agents, 4 * padded(dim), count, dim, turned, 64)
        left, right = (source, x[4], 4), (turned, 64)
        product(rows, 1, dim, left, right, (products, 64), np.float32(scale), False)
        copy_in_transposed(FLOAT, products, 64, rows, LANES, s, row)
        return
    copy_in_transposed(x[0], source, x[4], rows, dim, transposed, row)
    left, right = (agents, 4 * padded(dim), 4), (transposed, row)
    vectors, factor = padded(rows) // LANES, np.float32(scale)
    product(count, vectors, dim, left, right, (s, row), factor, False)


@jit
def _agents_in(x, samples, head, count, columns, target):
    """Copies the rows of all agents of each sample to floats."""
    row = 4 * padded(columns)
    for b in range(samples[0], samples[1]):
        place = target + (b - samples[0]) * padded(count) * row
        copy_in(x[0], _at(x, b, head, 0), x[4], count, columns, place, row)


@jit
def _softmax_rows(s, bias, row, count, vectors, tops, totals, sums, sums_row, first):
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


@jit
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
    wide, rows, block, row = padded(dim_v), padded(count), split[2], split[3]
    a_size, v_row, v_size = 4 * rows * padded(dim), 4 * wide, 4 * rows * wide
    at_agents, at_values, totals = scratch, scratch + places[1], scratch + places[2]
    tops, at_s, at_k = scratch + places[3], scratch + places[4], scratch + places[5]
    at_v, at_bias, parts = scratch + places[6], scratch + places[7], scratch + places[8]
    for task in range(begin, end):
        _, head, chunk, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, head, count, dim, at_agents)
        bias_in(bias, head, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, first = min(block, tokens[1] - start), start == tokens[0]
            # Logits of -inf fill up the last vector.
            fill = np.float32(-np.inf)
            fill_bias(bias, head, count, start, length, fill, parts, at_bias, row)
            for b in range(samples[0], samples[1]):
                slot = b - samples[0]
                a, sums = at_agents + slot * a_size, at_values + slot * v_size
                _prefetch_next(k, b, head, start, samples, tokens, block, dim)
                _logits(a, k, b, head, start, length, count, dim, scale, at_k, at_s, row)
                _softmax_rows(
                    at_s,
                    at_bias,
                    row,
                    count,
                    padded(length) // LANES,
                    tops + slot * 4 * rows,
                    totals + slot * 64 * rows,
                    sums,
                    v_row,
                    first,
                )
                _prefetch_next(v, b, head, start, samples, tokens, block, dim_v)
                y = _rows_in(v, b, head, start, length, dim_v, at_v)
                weights, out = (at_s, row, 4), (sums, v_row)
                product(count, wide // LANES, length, weights, y, out, ONE, not first)
        for b in range(samples[0], samples[1]):
            slot = b - samples[0]
            place = ((chunk * batch + b) * all_heads + head) * count
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
    wide, rows, block, row = padded(dim_v), padded(count), split[2], split[3]
    a_size, v_row, v_size = 4 * rows * padded(dim), 4 * wide, 4 * rows * wide
    at_agents, at_values = scratch, scratch + places[1]
    at_s, at_q, at_out = scratch + places[4], scratch + places[5], scratch + places[6]
    at_bias, parts = scratch + places[7], scratch + places[8]
    matrix = 4 * count * dim_v
    values = (FLOAT, values, all_heads * matrix, matrix, 4 * dim_v, 4)
    for task in range(begin, end):
        _, head, _, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, head, count, dim, at_agents)
        _agents_in(values, samples, head, count, dim_v, at_values)
        bias_in(bias, head, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, fill = min(block, tokens[1] - start), np.float32(0)
            fill_bias(bias, head, count, start, length, fill, parts, at_bias, row)
            for b in range(samples[0], samples[1]):
                slot = b - samples[0]
                a, y = at_agents + slot * a_size, (at_values + slot * v_size, v_row)
                _prefetch_next(q, b, head, start, samples, tokens, block, dim)
                _prefetch_next(out, b, head, start, samples, tokens, block, dim_v)
                _logits(a, q, b, head, start, length, count, dim, scale, at_q, at_s, row)
                place = lse + 4 * ((b * all_heads + head) * all_tokens + start)
                _softmax_columns(at_s, at_bias, row, count, length, place)
                weights = (at_s, row)
                _product_out(out, b, head, start, length, dim_v, count, weights, y, ONE, at_out)


@jit
def _add_rows(source, rows, columns, target, target_row):
    """Adds contiguous rows of floats to others, which are in whole vectors."""
    for i in range(rows):
        for j in range(0, columns, LANES):
            place = target + i * target_row + 4 * j
            value = load_lanes(source + 4 * (i * columns + j), columns - j)
            store(place, load(place) + value)


@jit
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


@jit
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
    group, chunks = split[0], split[5]
    at_agents, at_values, a_sums = scratch, scratch + places[1], scratch + places[2]
    v_sums, deltas, at_s = scratch + places[3], scratch + places[4], scratch + places[5]
    at_g, at_t, buffer = scratch + places[6], scratch + places[7], scratch + places[8]
    at_bias, bias_grad, parts = scratch + places[9], scratch + places[10], scratch + places[11]
    matrix = 4 * count * dim_v
    values = (FLOAT, values, all_heads * matrix, matrix, 4 * dim_v, 4)
    factor = np.float32(scale)
    for task in range(begin, end):
        g, head, chunk, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, head, count, dim, at_agents)
        bias_in(bias, head, count, parts)
        if tokens[0] == tokens[1]:
            # No block is to come, the first of which writes the sums.
            clear(a_sums, group * (a_size + v_size) // 4)
        if of_queries:
            _agents_in(values, samples, head, count, dim_v, at_values)
        else:
            # No sums of values' gradients are wanted: their memory lends itself to the values.
            _agents_in(values, samples, head, count, dim_v, v_sums)
            clear(at_values, group * v_size // 4)
            for b in range(samples[0], samples[1]):
                slot = b - samples[0]
                target = at_values + slot * v_size
                for part in range(value_parts):
                    source = value_sums + ((part * batch + b) * all_heads + head) * matrix
                    _add_rows(source, count, dim_v, target, v_row)
                for i in range(slot * rows, slot * rows + count):
                    delta = inner_product(at_values + i * v_row, v_sums + i * v_row, wide)
                    put(deltas + 4 * i, delta)
        part = (g if bias[0][0] == DENSE else g * chunks + chunk) * all_heads + head
        clear_bias_sums(bias, part_sums, part, count)
        for start in range(tokens[0], tokens[1], block):
            length, later = min(block, tokens[1] - start), start > tokens[0]
            vectors = padded(length) // LANES
            fill = np.float32(0) if of_queries else np.float32(-np.inf)
            fill_bias(bias, head, count, start, length, fill, parts, at_bias, row)
            clear(bias_grad, count * row // 4)
            for b in range(samples[0], samples[1]):
                slot, place = b - samples[0], b * all_heads + head
                a, v = (at_agents + slot * a_size, a_row), (at_values + slot * v_size, v_row)
                _prefetch_next(x, b, head, start, samples, tokens, block, dim)
                _prefetch_next(dx, b, head, start, samples, tokens, block, dim)
                _logits(a[0], x, b, head, start, length, count, dim, scale, at_t, at_s, row)
                _prefetch_next(y, b, head, start, samples, tokens, block, dim_v)
                _logits(v[0], y, b, head, start, length, count, dim_v, 1.0, at_t, at_g, row)
                if of_queries:
                    at_lse = lse + 4 * (place * all_tokens + start)
                    _column_gradients(at_s, at_g, at_bias, bias_grad, row, count, length, at_lse)
                    rest = _rows_in(y, b, head, start, length, dim_v, buffer)
                    weights, out = (at_s, row, 4), (v_sums + slot * v_size, v_row)
                    product(count, wide // LANES, length, weights, rest, out, ONE, later)
                else:
                    _prefetch_next(dy, b, head, start, samples, tokens, block, dim_v)
                    delta, at_lse = deltas + 4 * slot * rows, lse + 4 * place * count
                    _row_gradients(
                        at_s, at_g, at_bias, bias_grad, row, count, vectors, at_lse, delta
                    )
                    weights = (at_s, row)
                    _product_out(dy, b, head, start, length, dim_v, count, weights, v, ONE, buffer)
                rest = _rows_in(x, b, head, start, length, dim, buffer)
                slopes, out = (at_g, row, 4), (a_sums + slot * a_size, a_row)
                product(count, deep // LANES, length, slopes, rest, out, factor, later)
                slopes = (at_g, row)
                _product_out(dx, b, head, start, length, dim, count, slopes, a, factor, buffer)
            if bias[0][0] == DENSE:
                target = part_sums[2] + 4 * (part * count * all_tokens + start)
                copy_out(FLOAT, bias_grad, row, count, length, target, 4 * all_tokens)
            elif bias[0][0] == IN_PARTS:
                add_to_bias_sums(bias, part_sums, part, count, start, length, parts, bias_grad, row)
        for b in range(samples[0], samples[1]):
            slot = b - samples[0]
            place = ((chunk * batch + b) * all_heads + head) * count
            source, target = a_sums + slot * a_size, agent_sums + 4 * place * dim
            copy_out(FLOAT, source, a_row, count, dim, target, 4 * dim)
            if of_queries:
                source, target = v_sums + slot * v_size, value_sums + 4 * place * dim_v
                copy_out(FLOAT, source, v_row, count, dim_v, target, 4 * dim_v)
