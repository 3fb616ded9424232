"""Agent attention on the CPU: blocks of tokens against all agents of a head.

A block of logits has agents as rows and tokens as columns in both softmaxes: the few agents need
not be padded to vectors, and queries and keys have the same products, with the softmax down the
columns for the one and along the rows for the other. The bias of a block is put together from its
parts in scratch memory, once for all samples of a task.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .._blocks import (
    DTYPE_CODES,
    clear,
    copy_in,
    copy_in_transposed,
    copy_out,
    inner_product,
    multiply,
    padded,
    scale_row,
    write,
)
from .._jit import inline, jit
from .._simd import (
    LANES,
    broadcast,
    exp,
    fma,
    get,
    keep,
    load,
    load_lanes,
    log,
    maximum,
    put,
    reduce_add,
    reduce_max,
    store,
    store_as,
)
from .._threads import parallel_for

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
ONE = np.float32(1)
LOWEST = np.float32(-3e38)
"""Below all finite logits; -inf minus it is still -inf."""
ABSENT, DENSE, IN_PARTS = 0, 1, 2
"""Kinds of bias."""
TASKS = 32
"""Roughly how many tasks a pass has, whatever the threads, for results must not depend on them."""


class _Split(NamedTuple):
    """How a pass over the tokens of a batch is shared out to tasks, each of one head."""

    group: int  # samples of a task
    chunk: int  # tokens of a task
    block: int  # tokens worked on at once
    groups: int
    chunks: int


def _split(batch, heads, tokens, agents):
    block = max(32, min(256, 8192 // agents // LANES * LANES))
    sequences = max(batch * heads, 1)
    group = max(1, min(batch, sequences // TASKS, 8))
    # Each chunk has sums of the size of the agents: it must not be short.
    chunks = max(1, min(-(-TASKS // sequences), tokens // max(block, 8 * agents)))
    chunk = max(padded.py_func(-(-tokens // chunks)), LANES)
    return _Split(group, chunk, block, -(-batch // group), -(-tokens // chunk))


def forward(q, k, v, agents, key_bias, query_bias, scales):
    """Output, the agents' values, and log-sum-exp of the logits of agents and of queries."""
    q, k, v, agents = _with_contiguous_rows(q, k, v, agents)
    batch, heads, count, _ = agents.shape
    dim = v.shape[3]

    split = _split(batch, heads, k.shape[2], count)
    bias, owner = _bias_arguments(key_bias, k.shape[2])
    parts = _floats(split.chunks, batch, heads, count, dim)
    lse_parts = _floats(split.chunks, batch, heads, count)
    parallel_for(
        _aggregate,
        split.groups * heads * split.chunks,
        _sizes(agents, k, v),
        split,
        scales[0],
        *(_layout(agents), _layout(k), _layout(v)),
        bias,
        parts.data_ptr(),
        lse_parts.data_ptr(),
    )
    values, key_lse = parts[0], lse_parts[0]
    if split.chunks > 1:
        values, key_lse = torch.empty_like(values), torch.empty_like(key_lse)
        _combine(
            *(split.chunks, batch * heads * count, dim),
            *(x.data_ptr() for x in (parts, lse_parts, values, key_lse)),
        )

    split = _split(batch, heads, q.shape[2], count)
    bias, owner = _bias_arguments(query_bias, q.shape[2])
    out = _empty_by_token(q, dim, v.dtype)
    query_lse = _floats(*q.shape[:3])
    parallel_for(
        _broadcast,
        split.groups * heads * split.chunks,
        _sizes(agents, q, v),
        split,
        scales[1],
        *(_layout(agents), _layout(q), _layout(out)),
        bias,
        values.data_ptr(),
        query_lse.data_ptr(),
    )
    return out, values, key_lse, query_lse


def backward(grad, values, key_lse, query_lse, q, k, v, agents, key_bias, query_bias, scales):
    """Gradients of q, k, v and agents, and of the parts of both biases."""
    grad, q, k, v, agents = _with_contiguous_rows(grad, q, k, v, agents)
    dq, dk, dv = (_empty_by_token(x, x.shape[3], x.dtype) for x in (q, k, v))
    query_split, key_split = (_split(*x.shape[:3], agents.shape[2]) for x in (q, k))
    agent_sums = _floats(query_split.chunks + key_split.chunks, *agents.shape)
    value_sums = _floats(query_split.chunks, *values.shape)

    def run(of_queries, split, scale, x, y, dx, dy, bias_parts, lse, agent_sums):
        bias, owner = _bias_arguments(bias_parts, x.shape[2])
        sums = _bias_sums(bias_parts, split)
        parallel_for(
            _gradients,
            split.groups * agents.shape[1] * split.chunks,
            of_queries,
            _sizes(agents, x, y),
            split,
            scale,
            *(_layout(agents), _layout(x), _layout(y), _layout(dx), _layout(dy)),
            bias,
            tuple(0 if x is None else x.data_ptr() for x in sums),
            values.data_ptr(),
            lse.data_ptr(),
            agent_sums.data_ptr(),
            value_sums.data_ptr(),
            query_split.chunks,
        )
        return [x if x is None else _total(s, x) for s, x in zip(sums, bias_parts, strict=True)]

    query_grads = run(
        *(True, query_split, scales[1], q, grad, dq, dq),
        *(query_bias, query_lse, agent_sums[: query_split.chunks]),
    )
    key_grads = run(
        *(False, key_split, scales[0], k, v, dk, dv),
        *(key_bias, key_lse, agent_sums[query_split.chunks :]),
    )
    return (dq, dk, dv, _total(agent_sums, agents)), key_grads, query_grads


def _with_contiguous_rows(*tensors):
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _empty_by_token(like, dim, dtype):
    """An uninitialised (B, heads, tokens, dim) in the order (B, tokens, heads, dim)."""
    batch, heads, tokens, _ = like.shape
    return like.new_empty(batch, tokens, heads, dim, dtype=dtype).transpose(1, 2)


def _floats(*shape):
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _sizes(agents, x, y):
    return *agents.shape[:3], *x.shape[2:], y.shape[3]


def _layout(x):
    """Code of the dtype, address, and strides in bytes of all dimensions but the last."""
    size = x.element_size()
    return DTYPE_CODES[x.dtype], x.data_ptr(), *(stride * size for stride in x.stride()[:-1])


def _bias_arguments(parts, tokens):
    """A bias as kernels take it, and what must outlive them."""
    rows, columns, block, prefix = parts
    if rows is None:
        kind, sizes, taps = (ABSENT if block is None else DENSE), (tokens, 0, 0, 0, 0, 0), None
    else:
        before = 0 if prefix is None else prefix.shape[2]
        shape = (0, 0) if block is None else block.shape[2:]
        kind, sizes = IN_PARTS, (tokens, rows.shape[2], columns.shape[2], *shape, before)
        taps = block if block is None else _resizing(tuple(shape), (sizes[1], sizes[2]))
    matrices = [x if x is None else _as_matrices(x) for x in parts]
    none = (0,) * 5
    arguments = (
        (kind, *sizes, *((0, 0, 0) if taps is None else (x.ctypes.data for x in taps))),
        *(none if x is None else (*_layout(x), x.stride(2) * x.element_size()) for x in matrices),
    )
    return arguments, (matrices, taps)


def _as_matrices(x):
    """A bias part as (heads, agents, tokens), contiguous in agents or tokens."""
    x = x.flatten(2)
    return x if 1 in x.stride()[1:] else x.contiguous()


@lru_cache(256)
def _resizing(block, size):
    """Bilinear interpolation: weights (H, h), and (w, W) and (W, w) in rows of whole vectors."""
    y, x = map(_resizing_line, block, size)
    wide, narrow = (F.pad(m, (0, -m.shape[1] % LANES)) for m in (x, x.T))
    return tuple(np.ascontiguousarray(m) for m in (y.T, wide, narrow))


def _resizing_line(before, after):
    lines = torch.eye(before, dtype=torch.float32, device="cpu")[None]
    return F.interpolate(lines, size=after, mode="linear", align_corners=False)[0]


def _bias_sums(parts, split):
    """Memory for each task's sums of the gradients of bias parts."""
    rows, _, block, _ = parts
    if rows is None:
        return [x if x is None else _floats(split.groups, *x.shape) for x in parts]
    tasks = split.groups * split.chunks
    sums = [x if x is None else _floats(tasks, *x.shape) for x in parts]
    if block is not None:
        sums[2] = _floats(tasks, *block.shape[:3], padded.py_func(block.shape[3]))
    return sums


def _total(sums, like):
    """Adds up the first dimension, in order; a tensor of another's shape and dtype."""
    out = like.new_empty(like.shape)
    columns = like.shape[-1]
    if out.numel() > 0:
        parallel_for(
            _add_up,
            out.numel() // columns,
            len(sums),
            sums.data_ptr(),
            4 * sums.stride(0),
            4 * sums.stride(-2),
            columns,
            DTYPE_CODES[out.dtype],
            out.data_ptr(),
            min_chunk=max(1, 65536 // columns),
        )
    return out


@jit
def _add_up(begin, end, parts, source, source_part, source_row, columns, dtype, target):
    size = 4 if dtype == FLOAT else 2
    for i in range(begin, end):
        for j in range(0, columns, LANES):
            place = source + i * source_row + 4 * j
            total = load_lanes(place, columns - j)
            for part in range(1, parts):
                total = total + load_lanes(place + part * source_part, columns - j)
            write(dtype, target + (i * columns + j) * size, total, columns - j)


@inline
def _tile_row(block):
    """Bytes of a row of logits: vectors to spare, and an odd number, which no cache set likes."""
    return 64 * ((padded(block) // LANES + 1) | 1)


@inline
def _task(task, sizes, split):
    """Group, head and chunk of a task, and its first and last sample and token."""
    batch, heads, _, tokens, _, _ = sizes
    group, chunk, _, _, chunks = split
    i, c = divmod(task, chunks)
    g, head = divmod(i, heads)
    samples = g * group, min((g + 1) * group, batch)
    return g, head, c, samples, (c * chunk, min((c + 1) * chunk, tokens))


@inline
def _product(rows, vectors, depth, a, b, c, scale, accumulate):
    """``multiply`` with (address, row, step) of A, and (address, row) of B and of C."""
    multiply(rows, vectors, depth, a[0], a[1], a[2], b[0], b[1], c[0], c[1], scale, accumulate)


@inline
def _at(x, sample, head, token):
    """Address of a row of a tensor."""
    return x[1] + sample * x[2] + head * x[3] + token * x[4]


@jit
def _rows_in(x, sample, head, first, rows, columns, buffer):
    """Address and stride of rows of floats: those of the tensor itself, or a copy in the buffer."""
    source = _at(x, sample, head, first)
    if x[0] == FLOAT and columns % LANES == 0:
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
        _product(rows, vectors, depth, (a[0], 4, a[1]), b, (target, x[4]), scale, False)
    else:
        row = 64 * vectors
        _product(rows, vectors, depth, (a[0], 4, a[1]), b, (buffer, row), scale, False)
        copy_out(x[0], buffer, row, rows, columns, target, x[4])


@jit
def _logits(agents, x, sample, head, first, rows, count, dim, scale, transposed, s, row):
    """Products (agents, rows) of agents, given as floats, and a block of tokens of ``x``.

    Columns are filled up to whole vectors with zeros.
    """
    copy_in_transposed(x[0], _at(x, sample, head, first), x[4], rows, dim, transposed, row)
    left, right = (agents, 4 * padded(dim), 4), (transposed, row)
    vectors, factor = padded(rows) // LANES, np.float32(scale)
    _product(count, vectors, dim, left, right, (s, row), factor, False)


@inline
def _aligned(address):
    """Next multiple of 64: vectors that straddle cache lines cost twice."""
    return (address + 63) // 64 * 64


@jit
def _agents_in(x, head, samples, count, columns, target):
    """Copies the rows of all agents, of each sample, to floats."""
    row = 4 * padded(columns)
    for b in range(samples[0], samples[1]):
        place = target + (b - samples[0]) * padded(count) * row
        copy_in(x[0], _at(x, b, head, 0), x[4], count, columns, place, row)


@inline
def _bias_places(bias, count, block):
    """Offsets in scratch memory, in floats, of a head's bias and of work on it; and of its end.

    Rows lie at the start, then columns, block, prefix, and lines of the map before and after
    they are resized horizontally, as many as a block of tokens touches.
    """
    _, _, height, width, h, w, before, _, _, _ = bias[0]
    rows, lines = padded(count), block // max(width, 1) + 2
    columns = rows * padded(height)
    resized = columns + rows * padded(width) + LANES
    prefix = resized + rows * padded(h * w) + LANES
    narrow = prefix + rows * padded(before)
    wide = narrow + lines * padded(w)
    return columns, resized, prefix, narrow, wide, wide + lines * padded(width) + LANES


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
def _bias_in(bias, head, count, block, memory):
    """Copies the parts of a head's bias to scratch memory."""
    geometry, rows, columns, resized, prefix = bias
    kind, _, height, width, h, w, before, _, _, _ = geometry
    if kind == IN_PARTS:
        places = _bias_places(bias, count, block)
        area = h * w
        _matrix_in(rows, head, count, 0, height, memory, 4 * padded(height))
        _matrix_in(columns, head, count, 0, width, memory + 4 * places[0], 4 * padded(width))
        _matrix_in(resized, head, count, 0, area, memory + 4 * places[1], 4 * padded(area))
        _matrix_in(prefix, head, count, 0, before, memory + 4 * places[2], 4 * padded(before))


@jit
def _fill_bias(bias, head, count, first, tokens, fill, memory, block, target, row):
    """Puts the bias of all agents and a block of tokens together; ``fill`` follows the tokens."""
    kind = bias[0][0]
    if kind == ABSENT:
        clear(target, count * row // 4)
    elif kind == DENSE:
        _matrix_in(bias[3], head, count, first, tokens, target, row)
    else:
        _put_together(bias, count, first, tokens, memory, block, target, row)
    if tokens % LANES > 0:
        for i in range(count):
            store(target + i * row + 4 * tokens, broadcast(fill))


@inline
def _lines(begin, end, width):
    """First and last line of the map with tokens from ``begin`` to ``end``; none are negative."""
    return max(begin, 0) // width, (max(end, 0) + width - 1) // width


@jit
def _put_together(bias, count, first, tokens, memory, block, target, row):
    _, _, height, width, h, w, before, taps_y, taps_x, _ = bias[0]
    columns, resized, prefix, narrow, wide, _ = _bias_places(bias, count, block)
    h_row, w_row, narrow_row = 4 * padded(height), 4 * padded(width), 4 * padded(w)
    at_narrow, at_wide = memory + 4 * narrow, memory + 4 * wide
    begin, end = first - before, first - before + tokens
    top, bottom = _lines(begin, end, width)
    for i in range(count):
        source = memory + 4 * (prefix + i * padded(before))
        for j in range(first, min(before, first + tokens)):
            put(target + i * row + 4 * (j - first), get(source + 4 * j))
        if w > 0:
            source = memory + 4 * (resized + i * padded(h * w))
            lines = bottom - top
            left, right = (taps_y + 4 * top * h, 4 * h, 4), (source, 4 * w)
            _product(lines, padded(w) // LANES, h, left, right, (at_narrow, narrow_row), ONE, False)
            left, right = (at_narrow, narrow_row, 4), (taps_x, w_row)
            _product(lines, padded(width) // LANES, w, left, right, (at_wide, w_row), ONE, False)
        for y in range(top, bottom):
            value = broadcast(get(memory + i * h_row + 4 * y))
            source = memory + 4 * columns + i * w_row
            line = at_wide + (y - top) * w_row
            place = target + i * row + 4 * (y * width - begin)
            # Vectors that reach over the end of a line are followed by the next one.
            for x in range(4 * max(begin - y * width, 0), 4 * min(end - y * width, width), 64):
                total = value + load(source + x)
                if w > 0:
                    total = total + load(line + x)
                store(place + x, total)


@jit
def _clear_floats(target, count):
    for i in range(0, count, LANES):
        store_as(FLOAT, target + 4 * i, broadcast(np.float32(0)), count - i)


@jit
def _clear_bias_sums(bias, sums, index, count):
    """Clears the sums of the gradient of bias parts of the ``index``-th task and head."""
    kind, _, height, width, h, w, before, _, _, _ = bias[0]
    if kind == IN_PARTS:
        _clear_floats(sums[0] + 4 * index * count * height, count * height)
        _clear_floats(sums[1] + 4 * index * count * width, count * width)
        _clear_floats(sums[2] + 4 * index * count * h * padded(w), count * h * padded(w))
        _clear_floats(sums[3] + 4 * index * count * before, count * before)


@jit
def _add_to_bias_sums(bias, sums, index, count, first, tokens, memory, block, grad, row):
    """Adds the gradient (agents, tokens) of a block of bias to the sums of its parts."""
    _, _, height, width, h, w, before, taps_y, _, taps_x = bias[0]
    _, _, _, narrow, wide, _ = _bias_places(bias, count, block)
    w_row, narrow_row = 4 * padded(width), 4 * padded(w)
    at_narrow, at_wide = memory + 4 * narrow, memory + 4 * wide
    begin, end = first - before, first - before + tokens
    top, bottom = _lines(begin, end, width)
    for i in range(count):
        agent, source = index * count + i, grad + i * row
        for j in range(first, min(before, first + tokens)):
            put(sums[3] + 4 * (agent * before + j), get(source + 4 * (j - first)))
        for y in range(top, bottom):
            line = at_wide + (y - top) * w_row
            if w > 0:
                clear(line, w_row // 4)
            place = source + 4 * (y * width - begin)
            total = broadcast(np.float32(0))
            stop = min(end - y * width, width)
            for x in range(max(begin - y * width, 0), stop, LANES):
                value = load_lanes(place + 4 * x, stop - x)
                total = total + value
                column = sums[1] + 4 * (agent * width + x)
                store_as(FLOAT, column, load_lanes(column, stop - x) + value, stop - x)
                if w > 0:
                    store(line + 4 * x, value)
            at_row = sums[0] + 4 * (agent * height + y)
            put(at_row, get(at_row) + reduce_add(total))
        if w > 0:
            lines, vectors = bottom - top, padded(w) // LANES
            left, right = (at_wide, w_row, 4), (taps_x, narrow_row)
            _product(lines, vectors, width, left, right, (at_narrow, narrow_row), ONE, False)
            left, right = (taps_y + 4 * top * h, 4, 4 * h), (at_narrow, narrow_row)
            out = sums[2] + agent * h * narrow_row
            _product(h, vectors, lines, left, right, (out, narrow_row), ONE, True)


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
        factor = broadcast(ONE) / total
        for i in range(j, j + count * row, row):
            store(s + i, load(s + i) * factor)
        store_as(FLOAT, lse + j, top + log(total), tokens - j // 4)


@jit
def _aggregate(begin, end, sizes, split, scale, agents, k, v, bias, values, lse):
    """The agents' values by a chunk of keys, and the log-sum-exp of its logits."""
    batch, heads, count, _, dim, dim_v = sizes
    group, _, block, _, _ = split
    deep, wide, rows = padded(dim), padded(dim_v), padded(count)
    row, a_row, v_row = _tile_row(block), 4 * deep, 4 * wide
    a_size, v_size = rows * a_row, rows * v_row
    size = group * (a_size + v_size + 68 * rows) + (2 * rows + deep) * row + block * v_row
    scratch = np.empty(LANES + size // 4 + _bias_places(bias, count, block)[5], np.float32)
    at_agents = _aligned(scratch.ctypes.data)
    at_values = at_agents + group * a_size
    totals = at_values + group * v_size
    tops = totals + group * 64 * rows
    at_s = tops + group * 4 * rows
    at_bias = at_s + rows * row
    at_k = at_bias + rows * row
    at_v = at_k + deep * row
    parts = at_v + block * v_row
    for task in range(begin, end):
        _, head, chunk, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, head, samples, count, dim, at_agents)
        _bias_in(bias, head, count, block, parts)
        for start in range(tokens[0], tokens[1], block):
            length = min(block, tokens[1] - start)
            first = start == tokens[0]
            # Logits of -inf fill up the last vector.
            fill = np.float32(-np.inf)
            _fill_bias(bias, head, count, start, length, fill, parts, block, at_bias, row)
            for b in range(samples[0], samples[1]):
                i = b - samples[0]
                a, sums = at_agents + i * a_size, at_values + i * v_size
                _logits(a, k, b, head, start, length, count, dim, scale, at_k, at_s, row)
                _softmax_rows(
                    at_s,
                    at_bias,
                    row,
                    count,
                    padded(length) // LANES,
                    tops + i * 4 * rows,
                    totals + i * 64 * rows,
                    sums,
                    v_row,
                    first,
                )
                y = _rows_in(v, b, head, start, length, dim_v, at_v)
                weights, out = (at_s, row, 4), (sums, v_row)
                _product(count, wide // LANES, length, weights, y, out, ONE, not first)
        for b in range(samples[0], samples[1]):
            i = b - samples[0]
            place = ((chunk * batch + b) * heads + head) * count
            for j in range(count):
                total = reduce_add(load(totals + 64 * (i * rows + j)))
                scale_row(at_values + i * v_size + j * v_row, wide, ONE / total)
                put(lse + 4 * (place + j), get(tops + 4 * (i * rows + j)) + np.log(total))
            target = values + 4 * place * dim_v
            copy_out(FLOAT, at_values + i * v_size, v_row, count, dim_v, target, 4 * dim_v)
    keep(scratch)


@jit
def _combine(chunks, rows, dim, values, lse, out, out_lse):
    """Puts the values and log-sum-exps of chunks of keys together."""
    for i in range(rows):
        top = np.float32(-np.inf)
        for c in range(chunks):
            top = max(top, get(lse + 4 * (c * rows + i)))
        total = np.float32(0)
        for c in range(chunks):
            total += np.exp(get(lse + 4 * (c * rows + i)) - top)
        put(out_lse + 4 * i, top + np.log(total))
        for j in range(0, dim, LANES):
            value = broadcast(np.float32(0))
            for c in range(chunks):
                share = np.exp(get(lse + 4 * (c * rows + i)) - top) / total
                part = load_lanes(values + 4 * ((c * rows + i) * dim + j), dim - j)
                value = fma(part, broadcast(np.float32(share)), value)
            store_as(FLOAT, out + 4 * (i * dim + j), value, dim - j)


@jit
def _broadcast(begin, end, sizes, split, scale, agents, q, out, bias, values, lse):
    """A chunk of the output, and the log-sum-exp of its logits."""
    _, heads, count, tokens_all, dim, dim_v = sizes
    group, _, block, _, _ = split
    deep, wide, rows = padded(dim), padded(dim_v), padded(count)
    row, a_row, v_row = _tile_row(block), 4 * deep, 4 * wide
    a_size, v_size = rows * a_row, rows * v_row
    size = group * (a_size + v_size) + (2 * rows + deep) * row + block * v_row
    scratch = np.empty(LANES + size // 4 + _bias_places(bias, count, block)[5], np.float32)
    at_agents = _aligned(scratch.ctypes.data)
    at_values = at_agents + group * a_size
    at_s = at_values + group * v_size
    at_bias = at_s + rows * row
    at_q = at_bias + rows * row
    at_out = at_q + deep * row
    parts = at_out + block * v_row
    values = (FLOAT, values, 4 * heads * count * dim_v, 4 * count * dim_v, 4 * dim_v)
    for task in range(begin, end):
        _, head, _, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, head, samples, count, dim, at_agents)
        _agents_in(values, head, samples, count, dim_v, at_values)
        _bias_in(bias, head, count, block, parts)
        for start in range(tokens[0], tokens[1], block):
            length = min(block, tokens[1] - start)
            fill = np.float32(0)
            _fill_bias(bias, head, count, start, length, fill, parts, block, at_bias, row)
            for b in range(samples[0], samples[1]):
                i = b - samples[0]
                a, y = at_agents + i * a_size, (at_values + i * v_size, v_row)
                _logits(a, q, b, head, start, length, count, dim, scale, at_q, at_s, row)
                place = lse + 4 * ((b * heads + head) * tokens_all + start)
                _softmax_columns(at_s, at_bias, row, count, length, place)
                weights = (at_s, row)
                _product_out(out, b, head, start, length, dim_v, count, weights, y, ONE, at_out)
    keep(scratch)


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
    of_queries,
    sizes,
    split,
    scale,
    agents,
    x,
    y,
    dx,
    dy,
    bias,
    bias_sums,
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
    batch, heads, count, tokens_all, dim, dim_v = sizes
    group, _, block, _, chunks = split
    deep, wide, rows = padded(dim), padded(dim_v), padded(count)
    row, a_row, v_row = _tile_row(block), 4 * deep, 4 * wide
    a_size, v_size = rows * a_row, rows * v_row
    most = max(deep, wide)
    size = group * (2 * (a_size + v_size) + 8 * rows) + (4 * rows + most) * row + block * 4 * most
    scratch = np.empty(LANES + size // 4 + _bias_places(bias, count, block)[5], np.float32)
    at_agents = _aligned(scratch.ctypes.data)
    at_values = at_agents + group * a_size
    a_sums = at_values + group * v_size
    v_sums = a_sums + group * a_size
    at_s = v_sums + group * v_size
    at_g = at_s + rows * row
    at_bias = at_g + rows * row
    bias_grad = at_bias + rows * row
    at_t = bias_grad + rows * row
    buffer = at_t + most * row
    delta = buffer + block * 4 * most
    parts = delta + group * 8 * rows
    by_head = 4 * count * dim_v
    values = (FLOAT, values, heads * by_head, by_head, 4 * dim_v)
    for task in range(begin, end):
        g, head, chunk, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, head, samples, count, dim, at_agents)
        _bias_in(bias, head, count, block, parts)
        index = (g if bias[0][0] == DENSE else g * chunks + chunk) * heads + head
        _clear_bias_sums(bias, bias_sums, index, count)
        clear(a_sums, group * (a_size + v_size) // 4)
        if of_queries:
            _agents_in(values, head, samples, count, dim_v, at_values)
        else:
            # The sums of values' gradients have no use here: the values take their place.
            _agents_in(values, head, samples, count, dim_v, v_sums)
            clear(at_values, group * v_size // 4)
            for b in range(samples[0], samples[1]):
                i = b - samples[0]
                target = at_values + i * v_size
                for part in range(value_parts):
                    source = value_sums + ((part * batch + b) * heads + head) * by_head
                    for j in range(count):
                        for m in range(0, dim_v, LANES):
                            place = target + j * v_row + 4 * m
                            value = load_lanes(source + 4 * (j * dim_v + m), dim_v - m)
                            store(place, load(place) + value)
                for j in range(i * rows, i * rows + count):
                    product = inner_product(at_values + j * v_row, v_sums + j * v_row, wide)
                    put(delta + 4 * j, product)
        for start in range(tokens[0], tokens[1], block):
            length = min(block, tokens[1] - start)
            vectors = padded(length) // LANES
            fill = np.float32(0) if of_queries else np.float32(-np.inf)
            _fill_bias(bias, head, count, start, length, fill, parts, block, at_bias, row)
            clear(bias_grad, count * row // 4)
            for b in range(samples[0], samples[1]):
                i = b - samples[0]
                a, v = (at_agents + i * a_size, a_row), (at_values + i * v_size, v_row)
                _logits(a[0], x, b, head, start, length, count, dim, scale, at_t, at_s, row)
                _logits(v[0], y, b, head, start, length, count, dim_v, 1.0, at_t, at_g, row)
                weights, slopes = (at_s, row), (at_g, row)
                place = (b * heads + head) * (tokens_all if of_queries else count)
                if of_queries:
                    place = lse + 4 * (place + start)
                    _column_gradients(at_s, at_g, at_bias, bias_grad, row, count, length, place)
                    rest, out = (
                        _rows_in(y, b, head, start, length, dim_v, buffer),
                        v_sums + i * v_size,
                    )
                    _product(
                        count, wide // LANES, length, (at_s, row, 4), rest, (out, v_row), ONE, True
                    )
                else:
                    mean, place = delta + 4 * i * rows, lse + 4 * place
                    _row_gradients(at_s, at_g, at_bias, bias_grad, row, count, vectors, place, mean)
                    _product_out(dy, b, head, start, length, dim_v, count, weights, v, ONE, buffer)
                factor = np.float32(scale)
                rest, out = _rows_in(x, b, head, start, length, dim, buffer), a_sums + i * a_size
                _product(
                    count, deep // LANES, length, (at_g, row, 4), rest, (out, a_row), factor, True
                )
                _product_out(dx, b, head, start, length, dim, count, slopes, a, factor, buffer)
            if bias[0][0] == DENSE:
                length_all = 4 * tokens_all
                target = bias_sums[2] + index * count * length_all + 4 * start
                copy_out(FLOAT, bias_grad, row, count, length, target, length_all)
            elif bias[0][0] == IN_PARTS:
                _add_to_bias_sums(
                    bias, bias_sums, index, count, start, length, parts, block, bias_grad, row
                )
        for b in range(samples[0], samples[1]):
            i = b - samples[0]
            place = ((chunk * batch + b) * heads + head) * count
            target = agent_sums + 4 * place * dim
            copy_out(FLOAT, a_sums + i * a_size, a_row, count, dim, target, 4 * dim)
            if of_queries:
                target = value_sums + 4 * place * dim_v
                copy_out(FLOAT, v_sums + i * v_size, v_row, count, dim_v, target, 4 * dim_v)
    keep(scratch)
