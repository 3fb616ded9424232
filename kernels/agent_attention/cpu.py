"""Agent attention on the CPU: blocks of tokens against all agents of a head.

A block of logits has agents as rows and tokens as columns in both softmaxes: the few agents need
not be padded to vectors, and queries and keys have the same products, with the softmax down the
columns for the one and along the rows for the other. The bias of a block is put together from its
parts in scratch memory, once for all samples of a task.

A task has a few heads, of which tokens have the rows side by side: these are brought in as one row,
for memory is fast only where neighbours are read together.
"""

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from .._blocks import (
    clear,
    copy_in,
    copy_in_transposed,
    copy_out,
    inner_product,
    padded,
    scale_row,
    share,
)
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
HEADS = 4
"""Most heads of a task."""
WIDE = 128
"""Most elements of the rows of a task's heads together, unless one head alone has more."""
CROWD = 4096
"""Most elements of the agents of a task's heads together, unless one head alone has more."""
TASKS = 16
"""Roughly how many tasks a pass has, whatever the threads, for results must not depend on them."""


class _Split(NamedTuple):
    """How a pass over the tokens of a batch is shared out to tasks, each of a few heads."""

    group: int  # samples of a task
    chunk: int  # tokens of a task
    block: int  # tokens worked on at once
    row: int  # bytes of a row of logits
    heads: int  # most heads of a task
    groups: int
    chunks: int
    shares: int  # of the heads

    @property
    def tasks(self):
        return self.groups * self.shares * self.chunks


@lru_cache(1024)
def _split(batch, heads, tokens, agents, dim):
    # A chunk has sums of the size of the agents: it must not be short.
    chunk = _even_part(tokens, max(256, 8 * agents))
    block = _even_part(chunk, max(32, min(96, 8192 // agents)))
    chunks = max(1, -(-tokens // chunk))
    shares = -(-heads // max(1, min(HEADS, WIDE // dim, CROWD // (agents * dim))))
    # The more samples a bias is put together for, the better, while there are enough tasks.
    groups = max(1, min(batch, -(-TASKS // max(shares * chunks, 1))))
    some = -(-heads // max(shares, 1))
    group = max(1, min(-(-batch // groups), 8, 65536 // (agents * dim * max(some, 1))))
    row = _spaced.py_func(block)
    return _Split(group, chunk, block, row, some, -(-batch // group), chunks, shares)


@inline
def _spaced(columns):
    """Bytes of a row of floats with a vector to spare.

    There are an odd number of vectors, to spread rows over the cache's sets.
    """
    return 64 * (((columns + LANES - 1) // LANES + 1) | 1)


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
        split.tasks,
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
        split.tasks,
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


def _sizes(agents, x, y):
    return *agents.shape[:3], *x.shape[2:], y.shape[3]


@lru_cache(1024)
def _forward_places(sizes, split, bias_size):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample and head: agents, values, sums of weights by lanes, maxima. Then logits, two
    blocks of tokens, what is transposed, and of each head the bias of a block, and the bias in
    parts.
    """
    a_size, v_size, tile, rows, tokens, turned = _matrix_sizes(sizes, split)
    each = a_size, v_size, 64 * rows, 4 * rows
    return _places(split, each, (tile, tokens, tokens, turned), (tile, bias_size))


@lru_cache(1024)
def _backward_places(sizes, split, bias_size):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample and head: agents, values, gradients of both, mean gradients of logits. Then
    logits, their gradients, what is transposed, two blocks of tokens, their gradients, and of each
    head the bias of a block and its gradient, and the bias in parts.
    """
    a_size, v_size, tile, rows, tokens, turned = _matrix_sizes(sizes, split)
    each = a_size, v_size, a_size, v_size, 4 * rows
    shared = tile, tile, turned, *[tokens] * 4
    return _places(split, each, shared, (tile, tile, bias_size))


def _places(split, each, shared, of_head):
    sizes = (
        *(split.group * split.heads * size for size in each),
        *shared,
        *(split.heads * size for size in of_head),
    )
    return (0, *accumulate(sizes))


def _matrix_sizes(sizes, split):
    """Bytes of a head's agents, values and logits; padded agents; bytes of a block of tokens of all
    heads of a task, and of what is transposed of a head."""
    rows, deep, wide = (padded.py_func(sizes[i]) for i in (2, 4, 5))
    tokens = split.block * _spaced.py_func(split.heads * max(sizes[4:]))
    turned = max(64 * split.block, max(deep, wide) * split.row) + 64 * max(deep, wide)
    return 4 * rows * deep, 4 * rows * wide, rows * split.row, rows, tokens, turned


@inline
def _task(task, sizes, split):
    """Group and chunk of a task, its first and number of heads, ranges of samples and tokens."""
    group, chunk, _, _, _, _, chunks, shares = split
    i, c = divmod(task, chunks)
    g, part = divmod(i, shares)
    samples = g * group, min((g + 1) * group, sizes[0])
    tokens = c * chunk, min((c + 1) * chunk, sizes[3])
    return g, c, share(part, shares, sizes[1]), samples, tokens


@inline
def _at(x, sample, head, token):
    """Address of a row of a tensor."""
    return x[1] + sample * x[2] + head * x[3] + token * x[4]


@jit
def _prefetch_next(x, sample, heads, start, samples, tokens, block, columns):
    """Begins to bring in the rows that a task turns to next, which hardware does not foresee."""
    start = start if sample + 1 < samples[1] else start + block
    sample = sample + 1 if sample + 1 < samples[1] else samples[0]
    size = columns * (4 if x[0] == FLOAT else 2)
    for i in range(start, min(start + block, tokens[1])):
        for head in range(heads[0], heads[0] + heads[1]):
            source = _at(x, sample, head, i)
            for j in range(0, size, 64):
                prefetch(source + j)


@inline
def _is_one_row(x, heads, dim):
    """Whether the rows of a token's heads are one row."""
    return heads[1] == 1 or x[3] == dim * (4 if x[0] == FLOAT else 2)


@jit
def _copy_in(x, sample, heads, first, rows, dim, target, row):
    """Copies rows of heads to floats, (rows, heads * dim)."""
    source = _at(x, sample, heads[0], first)
    if _is_one_row(x, heads, dim):
        copy_in(x[0], source, x[4], rows, heads[1] * dim, target, row)
        return
    # What fills up a head's vectors makes place for the next one.
    for h in range(heads[1]):
        copy_in(x[0], source + h * x[3], x[4], rows, dim, target + 4 * h * dim, row)


@jit
def _copy_out(x, sample, heads, first, rows, dim, source, row):
    """Copies floats (rows, heads * dim) to rows of heads."""
    target = _at(x, sample, heads[0], first)
    if _is_one_row(x, heads, dim):
        copy_out(x[0], source, row, rows, heads[1] * dim, target, x[4])
        return
    for h in range(heads[1]):
        copy_out(x[0], source + 4 * h * dim, row, rows, dim, target + h * x[3], x[4])


@inline
def _are_in_lanes(count):
    """Whether agents are the columns of products that are then transposed.

    Where they about fill a vector, there is less to transpose in them than in tokens.
    """
    return FEWEST_IN_LANES <= count <= LANES


@inline
def _are_in_place(x, dim):
    """Whether products can write whole vectors of a tensor's rows."""
    return x[0] == FLOAT and dim % LANES == 0


@inline
def _rows_out(x, sample, heads, first, dim, buffer, row):
    """Where rows of heads are to be written as floats: the tensor itself, or a buffer.

    In the latter what fills up a head's vectors makes place for the next one.

    Returns:
        Address, bytes to the next head's, and from row to row.
    """
    if _are_in_place(x, dim):
        return _at(x, sample, heads[0], first), x[3], x[4]
    return buffer, 4 * dim, row


@inline
def _head_of(rows, h):
    """Address and row of a head of several."""
    return rows[0] + h * rows[1], rows[2]


@jit
def _logits(agents, tokens, tokens_row, rows, count, dim, scale, turned, s, row):
    """Products (agents, rows) of a head's agents and a block of its tokens, both given as floats.

    Columns are filled up to whole vectors with zeros. ``turned`` is memory for what is transposed.
    """
    factor, a_row = np.float32(scale), 4 * padded(dim)
    if _are_in_lanes(count):
        products = turned + 64 * padded(dim)
        copy_in_transposed(FLOAT, agents, a_row, count, dim, turned, 64)
        left = tokens, tokens_row, 4
        product(rows, 1, dim, left, (turned, 64), (products, 64), factor, False)
        copy_in_transposed(FLOAT, products, 64, rows, LANES, s, row)
    else:
        copy_in_transposed(FLOAT, tokens, tokens_row, rows, dim, turned, row)
        left, vectors = (agents, a_row, 4), padded(rows) // LANES
        product(count, vectors, dim, left, (turned, row), (s, row), factor, False)


@jit
def _agents_in(x, samples, heads, count, columns, target):
    """Copies the rows of all agents of each sample and head to floats."""
    row = 4 * padded(columns)
    for b in range(samples[0], samples[1]):
        for head in range(heads[0], heads[0] + heads[1]):
            copy_in(x[0], _at(x, b, head, 0), x[4], count, columns, target, row)
            target += padded(count) * row


@jit
def _bias_in(bias, heads, count, memory):
    """Copies the parts of the biases of heads to scratch memory."""
    for h in range(heads[1]):
        bias_in(bias, heads[0] + h, count, memory + h * bias[6][-1])


@jit
def _fill_bias(bias, heads, count, first, tokens, fill, memory, target, row):
    """Puts the biases of heads together, of all agents and a block of tokens."""
    for h in range(heads[1]):
        own, place = memory + h * bias[6][-1], target + h * padded(count) * row
        fill_bias(bias, heads[0] + h, count, first, tokens, fill, own, place, row)


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
    k_row, y_row = _spaced(split[4] * dim), _spaced(split[4] * dim_v)
    at_agents, at_values, totals = scratch, scratch + places[1], scratch + places[2]
    tops, at_s, at_k = scratch + places[3], scratch + places[4], scratch + places[5]
    at_v, turned = scratch + places[6], scratch + places[7]
    at_bias, parts = scratch + places[8], scratch + places[9]
    for task in range(begin, end):
        _, chunk, heads, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, heads, count, dim, at_agents)
        _bias_in(bias, heads, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, first = min(block, tokens[1] - start), start == tokens[0]
            # Logits of -inf fill up the last vector.
            fill = np.float32(-np.inf)
            _fill_bias(bias, heads, count, start, length, fill, parts, at_bias, row)
            for b in range(samples[0], samples[1]):
                _prefetch_next(k, b, heads, start, samples, tokens, block, dim)
                _copy_in(k, b, heads, start, length, dim, at_k, k_row)
                _prefetch_next(v, b, heads, start, samples, tokens, block, dim_v)
                _copy_in(v, b, heads, start, length, dim_v, at_v, y_row)
                for h in range(heads[1]):
                    slot = (b - samples[0]) * heads[1] + h
                    a, sums = at_agents + slot * a_size, at_values + slot * v_size
                    own = at_k + 4 * h * dim
                    _logits(a, own, k_row, length, count, dim, scale, turned, at_s, row)
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
                    y = at_v + 4 * h * dim_v, y_row
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
    wide, rows, block, row = padded(dim_v), padded(count), split[2], split[3]
    a_size, v_row, v_size = 4 * rows * padded(dim), 4 * wide, 4 * rows * wide
    q_row, out_row = _spaced(split[4] * dim), _spaced(split[4] * dim_v)
    at_agents, at_values = scratch, scratch + places[1]
    at_s, at_q, at_out = scratch + places[4], scratch + places[5], scratch + places[6]
    turned, at_bias, parts = scratch + places[7], scratch + places[8], scratch + places[9]
    matrix = 4 * count * dim_v
    values = (FLOAT, values, all_heads * matrix, matrix, 4 * dim_v, 4)
    for task in range(begin, end):
        _, _, heads, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, heads, count, dim, at_agents)
        _agents_in(values, samples, heads, count, dim_v, at_values)
        _bias_in(bias, heads, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, fill = min(block, tokens[1] - start), np.float32(0)
            _fill_bias(bias, heads, count, start, length, fill, parts, at_bias, row)
            for b in range(samples[0], samples[1]):
                _prefetch_next(q, b, heads, start, samples, tokens, block, dim)
                _prefetch_next(out, b, heads, start, samples, tokens, block, dim_v)
                _copy_in(q, b, heads, start, length, dim, at_q, q_row)
                y = _rows_out(out, b, heads, start, dim_v, at_out, out_row)
                for h in range(heads[1]):
                    slot = (b - samples[0]) * heads[1] + h
                    a, v = at_agents + slot * a_size, (at_values + slot * v_size, v_row)
                    own = at_q + 4 * h * dim
                    _logits(a, own, q_row, length, count, dim, scale, turned, at_s, row)
                    place = lse + 4 * ((b * all_heads + heads[0] + h) * all_tokens + start)
                    _softmax_columns(at_s, at_bias + h * rows * row, row, count, length, place)
                    weights, own = (at_s, 4, row), _head_of(y, h)
                    product(length, wide // LANES, count, weights, v, own, ONE, False)
                if not _are_in_place(out, dim_v):
                    _copy_out(out, b, heads, start, length, dim_v, at_out, out_row)


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
    x_row, y_row, tile = _spaced(split[4] * dim), _spaced(split[4] * dim_v), rows * row
    slots, chunks = split[0] * split[4], split[6]
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
        g, chunk, heads, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, heads, count, dim, at_agents)
        _bias_in(bias, heads, count, parts)
        if tokens[0] == tokens[1]:
            # No block is to come, the first of which writes the sums.
            clear(a_sums, slots * (a_size + v_size) // 4)
        if of_queries:
            _agents_in(values, samples, heads, count, dim_v, at_values)
        else:
            # No sums of values' gradients are wanted: their memory lends itself to the values.
            _agents_in(values, samples, heads, count, dim_v, v_sums)
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
            _fill_bias(bias, heads, count, start, length, fill, parts, at_bias, row)
            clear(bias_grad, heads[1] * tile // 4)
            for b in range(samples[0], samples[1]):
                _prefetch_next(x, b, heads, start, samples, tokens, block, dim)
                _prefetch_next(dx, b, heads, start, samples, tokens, block, dim)
                _copy_in(x, b, heads, start, length, dim, at_x, x_row)
                _prefetch_next(y, b, heads, start, samples, tokens, block, dim_v)
                _copy_in(y, b, heads, start, length, dim_v, at_y, y_row)
                _prefetch_next(dy, b, heads, start, samples, tokens, block, dim_v)
                of_dx = _rows_out(dx, b, heads, start, dim, at_dx, x_row)
                of_dy = _rows_out(dy, b, heads, start, dim_v, at_dy, y_row)
                for h in range(heads[1]):
                    slot = (b - samples[0]) * heads[1] + h
                    place = b * all_heads + heads[0] + h
                    a, v = (at_agents + slot * a_size, a_row), (at_values + slot * v_size, v_row)
                    own_bias, own_grad = at_bias + h * tile, bias_grad + h * tile
                    own_x, own_y = at_x + 4 * h * dim, at_y + 4 * h * dim_v
                    _logits(a[0], own_x, x_row, length, count, dim, scale, turned, at_s, row)
                    _logits(v[0], own_y, y_row, length, count, dim_v, 1.0, turned, at_g, row)
                    if of_queries:
                        at_lse = lse + 4 * (place * all_tokens + start)
                        _column_gradients(
                            at_s, at_g, own_bias, own_grad, row, count, length, at_lse
                        )
                        weights, out = (at_s, row, 4), (v_sums + slot * v_size, v_row)
                        own = own_y, y_row
                        product(count, wide // LANES, length, weights, own, out, ONE, later)
                    else:
                        delta, at_lse = deltas + 4 * slot * rows, lse + 4 * place * count
                        _row_gradients(
                            at_s, at_g, own_bias, own_grad, row, count, vectors, at_lse, delta
                        )
                        weights, own = (at_s, 4, row), _head_of(of_dy, h)
                        product(length, wide // LANES, count, weights, v, own, ONE, False)
                    slopes, out = (at_g, row, 4), (a_sums + slot * a_size, a_row)
                    own = own_x, x_row
                    product(count, deep // LANES, length, slopes, own, out, factor, later)
                    slopes, own = (at_g, 4, row), _head_of(of_dx, h)
                    product(length, deep // LANES, count, slopes, a, own, factor, False)
                if not _are_in_place(dx, dim):
                    _copy_out(dx, b, heads, start, length, dim, at_dx, x_row)
                if not (of_queries or _are_in_place(dy, dim_v)):
                    _copy_out(dy, b, heads, start, length, dim_v, at_dy, y_row)
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
