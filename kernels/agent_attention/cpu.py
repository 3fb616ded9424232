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
    load,
    load_lanes,
    log,
    maximum,
    prefetch,
    put,
    reduce_add,
    reduce_max,
    store,
    store_as,
)
from .._threads import parallel_for
from .reference import interpolation_weights

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
ONE = np.float32(1)
LOWEST = np.float32(-3e38)
"""Below all finite logits; -inf minus it is still -inf."""
TINY = np.float32(1e-30)
"""What a softmax over nothing but -inf is divided by: it gives zeros."""
ABSENT, DENSE, IN_PARTS = 0, 1, 2
"""Kinds of bias."""
TASKS = 16
"""Roughly how many tasks a pass has, whatever the threads, for results must not depend on them."""


class _Split(NamedTuple):
    """How a pass over the tokens of a batch is shared out to tasks, each of one head."""

    group: int  # samples of a task
    chunk: int  # tokens of a task
    block: int  # tokens worked on at once
    row: int  # bytes of a row of logits
    groups: int
    chunks: int


def _split(batch, heads, tokens, agents, dim):
    # A chunk has sums of the size of the agents: it must not be short.
    chunk = _even_part(tokens, max(256, 8 * agents))
    block = _even_part(chunk, max(32, min(128, 8192 // agents)))
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


def forward(q, k, v, agents, key_bias, query_bias, scales):
    """Output, the agents' values, and log-sum-exp of the logits of agents and of queries."""
    q, k, v, agents = _with_contiguous_rows(q, k, v, agents)
    batch, heads, count, _ = agents.shape
    dim = v.shape[3]

    split = _split(batch, heads, k.shape[2], count, dim)
    bias, owner = _bias_arguments(key_bias, k.shape[2], count, split.block)
    places = _forward_places(_sizes(agents, k, v), split, bias)
    parts = _floats(split.chunks, batch, heads, count, dim)
    lse_parts = _floats(split.chunks, batch, heads, count)
    parallel_for(
        _aggregate,
        split.groups * heads * split.chunks,
        _sizes(agents, k, v),
        tuple(split),
        places,
        scales[0],
        *(_layout(agents), _layout(k), _layout(v)),
        bias,
        parts.data_ptr(),
        lse_parts.data_ptr(),
        scratch=places[-1],
    )
    values, key_lse = parts[0], lse_parts[0]
    if split.chunks > 1:
        values, key_lse = torch.empty_like(values), torch.empty_like(key_lse)
        _combine(
            *(split.chunks, batch * heads * count, dim),
            *(x.data_ptr() for x in (parts, lse_parts, values, key_lse)),
        )

    split = _split(batch, heads, q.shape[2], count, dim)
    bias, owner = _bias_arguments(query_bias, q.shape[2], count, split.block)
    places = _forward_places(_sizes(agents, q, v), split, bias)
    out = _empty_by_token(q, dim, v.dtype)
    query_lse = _floats(*q.shape[:3])
    parallel_for(
        _broadcast,
        split.groups * heads * split.chunks,
        _sizes(agents, q, v),
        tuple(split),
        places,
        scales[1],
        *(_layout(agents), _layout(q), _layout(out)),
        bias,
        values.data_ptr(),
        query_lse.data_ptr(),
        scratch=places[-1],
    )
    return out, values, key_lse, query_lse


def backward(grad, values, key_lse, query_lse, q, k, v, agents, key_bias, query_bias, scales):
    """Gradients of q, k, v and agents, and of the parts of both biases."""
    grad, q, k, v, agents = _with_contiguous_rows(grad, q, k, v, agents)
    dq, dk, dv = (_empty_by_token(x, x.shape[3], x.dtype) for x in (q, k, v))
    query_split, key_split = (_split(*x.shape[:3], agents.shape[2], v.shape[3]) for x in (q, k))
    agent_sums = _floats(query_split.chunks + key_split.chunks, *agents.shape)
    value_sums = _floats(query_split.chunks, *values.shape)

    def run(of_queries, split, scale, x, y, dx, dy, bias_parts, lse, agent_sums):
        bias, owner = _bias_arguments(bias_parts, x.shape[2], agents.shape[2], split.block)
        places = _backward_places(_sizes(agents, x, y), split, bias)
        sums = _bias_sums(bias_parts, split)
        parallel_for(
            _gradients,
            split.groups * agents.shape[1] * split.chunks,
            of_queries,
            _sizes(agents, x, y),
            tuple(split),
            places,
            scale,
            *(_layout(agents), _layout(x), _layout(y), _layout(dx), _layout(dy)),
            bias,
            tuple(0 if x is None else x.data_ptr() for x in sums),
            values.data_ptr(),
            lse.data_ptr(),
            agent_sums.data_ptr(),
            value_sums.data_ptr(),
            query_split.chunks,
            scratch=places[-1],
        )
        return _bias_gradients(sums, bias_parts)

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


def _forward_places(sizes, split, bias):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample: agents, values, sums of weights by lanes, maxima. Then logits, a transposed
    block of tokens, a block of rows, the bias of a block, and the bias in parts.
    """
    a_size, v_size, tile, rows, deep, wide = _matrix_sizes(sizes, split)
    each = a_size, v_size, 64 * rows, 4 * rows
    shared = tile, deep * split.row, 4 * wide * split.block, tile, bias[-1][-1]
    return (0, *accumulate((*(split.group * size for size in each), *shared)))


def _backward_places(sizes, split, bias):
    """Where a task's scratch memory has what, in bytes, and its size.

    Of each sample: agents, values, gradients of both, mean gradients of logits. Then logits, their
    gradients, a transposed block of tokens, a block of rows, the bias of a block and its gradient,
    and the bias in parts.
    """
    a_size, v_size, tile, rows, deep, wide = _matrix_sizes(sizes, split)
    most = max(deep, wide)
    each = a_size, v_size, a_size, v_size, 4 * rows
    shared = tile, tile, most * split.row, 4 * most * split.block, tile, tile
    return (0, *accumulate((*(split.group * size for size in each), *shared, bias[-1][-1])))


def _matrix_sizes(sizes, split):
    """Bytes of a sample's agents and values, and of logits; and padded agents and dimensions."""
    rows, deep, wide = (padded.py_func(sizes[i]) for i in (2, 4, 5))
    return 4 * rows * deep, 4 * rows * wide, rows * split.row, rows, deep, wide


def _bias_arguments(parts, tokens, count, block):
    """A bias as kernels take it, and what must outlive them.

    The former is kind and sizes, a matrix of each part, and where scratch memory has what.
    """
    rows, columns, resized, prefix = parts
    height = width = h = w = before = 0
    kind, taps = (ABSENT if resized is None else DENSE), ()
    if rows is not None:
        height, width = rows.shape[2], columns.shape[2]
        h, w = (0, 0) if resized is None else resized.shape[2:]
        before = 0 if prefix is None else prefix.shape[2]
        kind, taps = IN_PARTS, _resizing((h, w), (height, width))
    matrices = [x if x is None else _as_matrices(x) for x in parts]
    none = (0,) * 5
    arguments = (
        (kind, tokens, height, width, h, w, before),
        tuple(x.ctypes.data for x in taps) or (0, 0, 0),
        *(none if x is None else (*_layout(x), x.stride(2) * x.element_size()) for x in matrices),
        _bias_places(kind, height, width, h, w, before, count, block),
    )
    return arguments, (matrices, taps)


def _bias_places(kind, height, width, h, w, before, count, block):
    """Where scratch memory has a head's bias and work on it, in bytes, and its size.

    Rows (agents, H), columns (agents, W), the block (h, agents, w), the prefix (agents, P), as many
    lines (lines, agents, w) of the vertically resized block as tokens worked on at once touch, and
    the block as it is given, (agents, h * w).
    """
    if kind != IN_PARTS:
        return (0,) * 7
    line = padded.py_func(count) * _narrow(w)
    matrices = (padded.py_func(count) * padded.py_func(x) for x in (height, width, before, h * w))
    rows, columns, prefix, matrix = (x + LANES for x in matrices)
    floats = rows, columns, h * line, prefix, (block // width + 2) * line, matrix
    return (0, *(4 * x for x in accumulate(floats)))


def _narrow(w):
    """Floats of an agent's line of the block, and of the row's bias behind it."""
    return padded.py_func(w + 1)


def _as_matrices(x):
    """A bias part as (heads, agents, tokens), contiguous in agents or tokens."""
    x = x.flatten(2)
    return x if 1 in x.stride()[1:] else x.contiguous()


@lru_cache(256)
def _resizing(block, size):
    """Bilinear interpolation: weights (H, h), (w + 1, W) and (W, w + 1), with ones in the end.

    The last two are in rows of whole vectors; the first of them has one to spare.
    """
    if 0 in block:
        y, x = (torch.zeros(0, side, dtype=torch.float32, device="cpu") for side in size)
    else:
        y, x = (interpolation_weights(*sides, "cpu") for sides in zip(block, size, strict=True))
    x = F.pad(x, (0, 0, 0, 1), value=1.0)
    wide, narrow = (F.pad(x, (0, -x.shape[1] % LANES + LANES)), F.pad(x.T, (0, -len(x) % LANES)))
    return tuple(np.ascontiguousarray(m) for m in (y.T, wide, narrow))


def _bias_sums(parts, split):
    """Memory for each task's sums of the gradients of bias parts."""
    rows, _, block, _ = parts
    if rows is None:
        return [x if x is None else _floats(split.groups, *x.shape) for x in parts]
    tasks = split.groups * split.chunks
    sums = [x if x is None else _floats(tasks, *x.shape) for x in parts]
    if block is not None:
        heads, count, height, width = block.shape
        sums[2] = _floats(tasks, heads, height, count, _narrow(width))
    return sums


def _bias_gradients(sums, parts):
    grads = list(parts)
    if parts[0] is not None and parts[2] is not None:
        grads[2] = parts[2].transpose(1, 2)
    grads = [x if x is None else _total(s, x) for s, x in zip(sums, grads, strict=True)]
    if parts[0] is not None and parts[2] is not None:
        grads[2] = grads[2].transpose(1, 2).contiguous()
    return grads


def _total(sums, like):
    """Adds up the first dimension, in order; a tensor of another's shape and dtype."""
    if len(sums) == 0:
        return like.new_zeros(like.shape)
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
def _task(task, sizes, split):
    """Group, head and chunk of a task, and its ranges of samples and tokens."""
    group, chunk, _, _, _, chunks = split
    i, c = divmod(task, chunks)
    g, head = divmod(i, sizes[1])
    samples = g * group, min((g + 1) * group, sizes[0])
    return g, head, c, samples, (c * chunk, min((c + 1) * chunk, sizes[3]))


@inline
def _product(rows, vectors, depth, a, b, c, scale, accumulate):
    """``multiply`` with (address, row, step) of A, and (address, row) of B and of C."""
    multiply(rows, vectors, depth, a[0], a[1], a[2], b[0], b[1], c[0], c[1], scale, accumulate)


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


@jit
def _agents_in(x, samples, head, count, columns, target):
    """Copies the rows of all agents of each sample to floats."""
    row = 4 * padded(columns)
    for b in range(samples[0], samples[1]):
        place = target + (b - samples[0]) * padded(count) * row
        copy_in(x[0], _at(x, b, head, 0), x[4], count, columns, place, row)


@inline
def _line(bias):
    """Bytes of an agent's line of the block, and of the row's bias behind it."""
    return 4 * padded(bias[0][5] + 1)


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
def _bias_in(bias, head, count, memory):
    """Copies the parts of a head's bias to scratch memory."""
    sizes, _, rows, columns, resized, prefix, places = bias
    kind, _, height, width, h, w, before = sizes
    if kind == IN_PARTS:
        _matrix_in(rows, head, count, 0, height, memory, 4 * padded(height))
        _matrix_in(columns, head, count, 0, width, memory + places[1], 4 * padded(width))
        _matrix_in(prefix, head, count, 0, before, memory + places[3], 4 * padded(before))
        matrix, row = memory + places[5], 4 * padded(h * w)
        _matrix_in(resized, head, count, 0, h * w, matrix, row)
        for y in range(h):
            target = memory + places[2] + y * count * _line(bias)
            copy_in(FLOAT, matrix + 4 * y * w, row, count, w, target, _line(bias))


@jit
def _fill_bias(bias, head, count, first, tokens, fill, memory, target, row):
    """Puts the bias of all agents and a block of tokens together; ``fill`` follows the tokens."""
    kind = bias[0][0]
    if kind == ABSENT:
        clear(target, count * row // 4)
    elif kind == DENSE:
        _matrix_in(bias[4], head, count, first, tokens, target, row)
    else:
        _put_together(bias, count, first, tokens, memory, target, row)
    if tokens % LANES > 0:
        for i in range(count):
            store(target + i * row + 4 * tokens, broadcast(fill))


@inline
def _lines(begin, end, width):
    """First and last line of the map with tokens from ``begin`` to ``end``; none are negative."""
    return max(begin, 0) // width, (max(end, 0) + width - 1) // width


@jit
def _put_together(bias, count, first, tokens, memory, target, row):
    """Bias (agents, tokens) of a block of tokens from that of rows, columns, block and prefix."""
    _, _, height, width, h, w, before = bias[0]
    taps_y, taps_x, _ = bias[1]
    _, columns, resized, prefix, at_lines, _, _ = bias[6]
    agent, column_row, tap_row = _line(bias), 4 * padded(width), 4 * padded(width + LANES)
    line, at_lines = count * agent, memory + at_lines
    begin, end = first - before, first - before + tokens
    top, bottom = _lines(begin, end, width)
    for i in range(count):
        for j in range(first, min(before, first + tokens)):
            value = get(memory + prefix + 4 * (i * padded(before) + j))
            put(target + i * row + 4 * (j - first), value)
    if w > 0:
        left, right = (taps_y + 4 * top * h, 4 * h, 4), (memory + resized, line)
        _product(bottom - top, line // 64, h, left, right, (at_lines, line), ONE, False)
    for y in range(top, bottom):
        at_line = at_lines + (y - top) * line
        start, stop = max(begin - y * width, 0), min(end - y * width, width)
        # Vectors that reach over the end of a line are followed by those of the next line.
        place, source = target + 4 * (y * width + start - begin), memory + columns + 4 * start
        for i in range(count):
            put(at_line + i * agent + 4 * w, get(memory + 4 * (i * padded(height) + y)))
            for x in range(0, 4 * (stop - start), 64):
                store(place + i * row + x, load(source + i * column_row + x))
        left, right = (at_line, agent, 4), (taps_x + 4 * start, tap_row)
        vectors = padded(stop - start) // LANES
        _product(count, vectors, w + 1, left, right, (place, row), ONE, True)


@jit
def _clear_floats(target, count):
    for i in range(0, count, LANES):
        store_as(FLOAT, target + 4 * i, broadcast(np.float32(0)), count - i)


@jit
def _clear_bias_sums(bias, sums, index, count):
    """Clears the sums of the gradient of bias parts of the ``index``-th task and head."""
    kind, _, height, width, h, _, before = bias[0]
    if kind == IN_PARTS:
        area = h * _line(bias) // 4
        _clear_floats(sums[0] + 4 * index * count * height, count * height)
        _clear_floats(sums[1] + 4 * index * count * width, count * width)
        _clear_floats(sums[2] + 4 * index * count * area, count * area)
        _clear_floats(sums[3] + 4 * index * count * before, count * before)


@jit
def _add_to_bias_sums(bias, sums, index, count, first, tokens, memory, grad, row):
    """Adds the gradient (agents, tokens) of a block of bias to the sums of its parts."""
    _, _, height, width, h, w, before = bias[0]
    taps_y, _, taps_x = bias[1]
    agent, at_lines = _line(bias), memory + bias[6][4]
    line = count * agent
    begin, end = first - before, first - before + tokens
    top, bottom = _lines(begin, end, width)
    for i in range(count):
        for j in range(first, min(before, first + tokens)):
            place = sums[3] + 4 * ((index * count + i) * before + j)
            put(place, get(grad + i * row + 4 * (j - first)))
    for y in range(top, bottom):
        at_line = at_lines + (y - top) * line
        start, stop = max(begin - y * width, 0), min(end - y * width, width)
        place, target = grad + 4 * (y * width + start - begin), sums[1] + 4 * start
        # The horizontally resized line and, by weights of one, the sum of each agent.
        left, right = (place, row, 4), (taps_x + start * agent, agent)
        _product(count, agent // 64, stop - start, left, right, (at_line, agent), ONE, False)
        for i in range(count):
            at_row = sums[0] + 4 * ((index * count + i) * height + y)
            put(at_row, get(at_row) + get(at_line + i * agent + 4 * w))
            for x in range(0, stop - start, LANES):
                column = target + 4 * ((index * count + i) * width + x)
                value = load_lanes(column, stop - start - x)
                value = value + load_lanes(place + i * row + 4 * x, stop - start - x)
                store_as(FLOAT, column, value, stop - start - x)
    if w > 0:
        left, right = (taps_y + 4 * top * h, 4, 4 * h), (at_lines, line)
        out = sums[2] + index * h * line
        _product(h, line // 64, bottom - top, left, right, (out, line), ONE, True)


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
        _bias_in(bias, head, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, first = min(block, tokens[1] - start), start == tokens[0]
            # Logits of -inf fill up the last vector.
            fill = np.float32(-np.inf)
            _fill_bias(bias, head, count, start, length, fill, parts, at_bias, row)
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
                _product(count, wide // LANES, length, weights, y, out, ONE, not first)
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
def _broadcast(begin, end, scratch, sizes, split, places, scale, agents, q, out, bias, values, lse):
    """A chunk of the output, and the log-sum-exp of its logits."""
    _, all_heads, count, all_tokens, dim, dim_v = sizes
    wide, rows, block, row = padded(dim_v), padded(count), split[2], split[3]
    a_size, v_row, v_size = 4 * rows * padded(dim), 4 * wide, 4 * rows * wide
    at_agents, at_values = scratch, scratch + places[1]
    at_s, at_q, at_out = scratch + places[4], scratch + places[5], scratch + places[6]
    at_bias, parts = scratch + places[7], scratch + places[8]
    matrix = 4 * count * dim_v
    values = (FLOAT, values, all_heads * matrix, matrix, 4 * dim_v)
    for task in range(begin, end):
        _, head, _, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, head, count, dim, at_agents)
        _agents_in(values, samples, head, count, dim_v, at_values)
        _bias_in(bias, head, count, parts)
        for start in range(tokens[0], tokens[1], block):
            length, fill = min(block, tokens[1] - start), np.float32(0)
            _fill_bias(bias, head, count, start, length, fill, parts, at_bias, row)
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
    batch, all_heads, count, all_tokens, dim, dim_v = sizes
    deep, wide, rows, block, row = padded(dim), padded(dim_v), padded(count), split[2], split[3]
    a_row, v_row, a_size, v_size = 4 * deep, 4 * wide, 4 * rows * deep, 4 * rows * wide
    group, chunks = split[0], split[5]
    at_agents, at_values, a_sums = scratch, scratch + places[1], scratch + places[2]
    v_sums, deltas, at_s = scratch + places[3], scratch + places[4], scratch + places[5]
    at_g, at_t, buffer = scratch + places[6], scratch + places[7], scratch + places[8]
    at_bias, bias_grad, parts = scratch + places[9], scratch + places[10], scratch + places[11]
    matrix = 4 * count * dim_v
    values = (FLOAT, values, all_heads * matrix, matrix, 4 * dim_v)
    factor = np.float32(scale)
    for task in range(begin, end):
        g, head, chunk, samples, tokens = _task(task, sizes, split)
        _agents_in(agents, samples, head, count, dim, at_agents)
        _bias_in(bias, head, count, parts)
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
        _clear_bias_sums(bias, bias_sums, part, count)
        for start in range(tokens[0], tokens[1], block):
            length = min(block, tokens[1] - start)
            vectors = padded(length) // LANES
            fill = np.float32(0) if of_queries else np.float32(-np.inf)
            _fill_bias(bias, head, count, start, length, fill, parts, at_bias, row)
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
                    _product(count, wide // LANES, length, weights, rest, out, ONE, True)
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
                _product(count, deep // LANES, length, slopes, rest, out, factor, True)
                slopes = (at_g, row)
                _product_out(dx, b, head, start, length, dim, count, slopes, a, factor, buffer)
            if bias[0][0] == DENSE:
                target = bias_sums[2] + 4 * (part * count * all_tokens + start)
                copy_out(FLOAT, bias_grad, row, count, length, target, 4 * all_tokens)
            elif bias[0][0] == IN_PARTS:
                _add_to_bias_sums(
                    bias, bias_sums, part, count, start, length, parts, bias_grad, row
                )
        for b in range(samples[0], samples[1]):
            slot = b - samples[0]
            place = ((chunk * batch + b) * all_heads + head) * count
            source, target = a_sums + slot * a_size, agent_sums + 4 * place * dim
            copy_out(FLOAT, source, a_row, count, dim, target, 4 * dim)
            if of_queries:
                source, target = v_sums + slot * v_size, value_sums + 4 * place * dim_v
                copy_out(FLOAT, source, v_row, count, dim_v, target, 4 * dim_v)
