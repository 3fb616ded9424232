"""Neighborhood attention on the CPU by matrix products, for maps hardly larger than the window.

All positions of a group are multiplied with all, and a mask takes away what is outside the windows.
Logits lie as (key, query), so that the softmax needs nothing across lanes.
"""

from typing import NamedTuple

import numpy as np

from .._ahead import ask, forget, queue_size
from .._blocks import clear, copy_in, copy_in_transposed, copy_out, padded
from .._jit import inline, jit
from .._vectors import F32, LANES, broadcast, get, load, put, store
from ._maps import LOG2E, VECTOR, axis, axis_variant, origin, softmax, softmax_gradient
from ._tile import UNIFORM, multiply_tiles

__all__ = ["UNIT", "Scratch", "backward", "forward", "scratch"]

INFINITY = np.float32(np.inf)
ZERO = np.float32(0)
UNIT = 8
"""Groups whose gradients of the bias are summed together; fixed, so that sums do not vary."""


class Scratch(NamedTuple):
    """Where things are in a thread's memory, in bytes."""

    tokens_row: int
    """Of a position's floats."""
    lanes_row: int
    """Of the floats of all queries."""
    keys: int
    values: int
    sums: int
    queries: int
    grads: int
    queries_t: int
    grads_t: int
    s: int
    change: int
    """From logits to the gradients of probabilities."""
    bias: int
    dbias: int
    inverse: int
    lse: int
    lines: int
    """Most lines of memory that are asked for in a task."""
    queue: int
    size: int


def scratch(count: int, dim: int, extra: int, backward: bool) -> Scratch:
    """Layout of the memory for groups of ``count`` positions and ``extra`` more keys."""
    row, lanes = padded.py_func(dim) * F32, padded.py_func(count) * F32
    keys = count + extra
    both = 2 if backward else 1
    lines = (4 if backward else 3) * count * -(-F32 * dim // VECTOR)
    transposed, squares = row * lanes // F32, keys * lanes
    sizes = {
        "keys": keys * row,
        "values": keys * row,
        "sums": keys * row,
        "queries": count * row,
        "grads": count * row if backward else 0,
        "queries_t": transposed,
        "grads_t": transposed if backward else 0,
        "s": both * squares,
        "bias": squares,
        "dbias": squares if backward else 0,
        "inverse": lanes,
        "lse": lanes,
        "queue": queue_size(lines),
    }
    begins, end = {}, 0
    for name, size in sizes.items():
        begins[name] = end
        end += -(-size // VECTOR) * VECTOR
    places = {name: begins[name] for name in Scratch._fields if name in begins}
    return Scratch(
        tokens_row=row, lanes_row=lanes, change=squares, lines=lines, size=end + VECTOR, **places
    )


@inline
def _decode(task, g):
    """Batch and group of a task of a head."""
    rest, gy = task // g.step_y, task % g.step_y
    rest, gz = rest // g.step_z, rest % g.step_z
    return rest % g.batch, gz, gy, rest // g.batch


@jit
def _copy_group(tensor, b, h, gz, gy, gx, g, zs, ys, xs, target, row):
    """Brings the positions of a group to rows of floats."""
    for z in range(zs.count):
        for y in range(ys.count):
            place = origin(tensor, b, h, gz + z * g.step_z, gy + y * g.step_y, gx)
            at = target + (z * ys.count + y) * xs.count * row
            copy_in(tensor.dtype, place, g.step_x * tensor.x, xs.count, g.dim, at, row)


@jit
def _ask_for_group(queue, tensors, task, h, g, depth, height, width):
    """Asks for the positions of a task of a head."""
    b, gz, gy, gx = _decode(task, g)
    zs = axis(depth, gz, g.depth, g.step_z)
    ys = axis(height, gy, g.height, g.step_y)
    xs = axis(width, gx, g.width, g.step_x)
    for n in range(len(tensors)):
        x = tensors[n]
        size = g.dim * (F32 if x.dtype == 0 else 2)
        for z in range(zs.count):
            for y in range(ys.count):
                place = origin(x, b, h, gz + z * g.step_z, gy + y * g.step_y, gx)
                ask(queue, place, g.step_x * x.x, xs.count, size)


@jit
def _write_group(tensor, b, h, gz, gy, gx, g, zs, ys, xs, source, row):
    """Writes rows of floats to the positions of a group."""
    for z in range(zs.count):
        for y in range(ys.count):
            place = origin(tensor, b, h, gz + z * g.step_z, gy + y * g.step_y, gx)
            at = source + (z * ys.count + y) * xs.count * row
            copy_out(tensor.dtype, at, row, xs.count, g.dim, place, g.step_x * tensor.x)


@jit
def _copy_extra(tensor, b, h, g, target, row):
    """Brings additional keys or values, which lie along ``x``, to rows of floats."""
    copy_in(tensor.dtype, origin(tensor, b, h, 0, 0, 0), tensor.x, g.extra, g.dim, target, row)


@jit
def _multiply(queue, zero, vectors, columns, depth, a, a_step, b, b_column, b_step, c, c_column):
    """``C[m] = sum over k of A[k] * B[m, k]``: rows of vectors, times numbers."""
    at = zero.ctypes.data
    multiply_tiles(
        LANES, vectors, columns, UNIFORM, 1, depth,
        at, a, VECTOR, a_step,
        at, b, b_column, b_step,
        0, 0, 0, 0,
        c, VECTOR, c_column, 0, 1, 0, 0, queue,
    )  # fmt: skip


@jit
def _scale(x, size, factor):
    """Multiplies floats by a number."""
    factors = broadcast(factor)
    for i in range(0, size, VECTOR):
        store(x + i, load(x + i) * factors)


@inline
def _lse_place(lse, b, h, z, y, x, g):
    return lse + F32 * ((((b * g.heads + h) * g.depth + z) * g.height + y) * g.width + x)


@inline
def _needs_bias(rpb, zs, ys, xs):
    """Whether there is a bias, or a window that is not the whole group."""
    if len(rpb) > 0:
        return True
    for rows in (zs, ys, xs):
        for i in range(rows.count):
            if rows.start[i] > 0 or rows.end[i] < rows.count:
                return True
    return False


@inline
def _bias_row(kz, ky, qz, qy, g, zs, ys):
    """Row of the bias table for rows of a key and a query; -1 outside of the window."""
    if kz < zs.start[qz] or kz >= zs.end[qz] or ky < ys.start[qy] or ky >= ys.end[qy]:
        return -1
    return (kz - qz + g.kernel_z - 1) * (2 * g.kernel_y - 1) + ky - qy + g.kernel_y - 1


@jit
def _expand_bias(rpb, h, g, w, zs, ys, xs, target):
    """Writes the bias (key, query) to the base 2, -inf outside of windows, 0 for more keys."""
    count = zs.count * ys.count * xs.count
    clear(target, (count + g.extra) * w.lanes_row // F32)
    for k in range(zs.count * ys.count):
        for q in range(zs.count * ys.count):
            row = _bias_row(k // ys.count, k % ys.count, q // ys.count, q % ys.count, g, zs, ys)
            for kx in range(xs.count):
                place = target + (k * xs.count + kx) * w.lanes_row + q * xs.count * F32
                for qx in range(xs.count):
                    value = -INFINITY
                    if row >= 0 and xs.start[qx] <= kx < xs.end[qx]:
                        value = ZERO
                        if len(rpb) > 0:
                            value = rpb[h, row, kx - qx + g.kernel_x - 1] * LOG2E
                    put(place + F32 * qx, value)


@jit
def _reduce_bias(dbias, g, w, zs, ys, xs, sums):
    """Moves the gradients of what ``_expand_bias`` writes to those of the table."""
    for k in range(zs.count * ys.count):
        for q in range(zs.count * ys.count):
            row = _bias_row(k // ys.count, k % ys.count, q // ys.count, q % ys.count, g, zs, ys)
            if row < 0:
                continue
            for kx in range(xs.count):
                place = dbias + (k * xs.count + kx) * w.lanes_row + q * xs.count * F32
                for qx in range(xs.count):
                    if xs.start[qx] <= kx < xs.end[qx]:
                        sums[row, kx - qx + g.kernel_x - 1] += get(place + F32 * qx)
    clear(dbias, (zs.count * ys.count * xs.count + g.extra) * w.lanes_row // F32)


@jit
def forward(
    begin, end, memory, g, w, scale, q, k, v, out, lse, rpb, extra_k, extra_v, depth, height,
    width,
):  # fmt: skip
    """Output and log-sum-exp of tasks, which are a group of a head each."""
    factor = np.float32(scale * LOG2E)
    row, vectors, queue = w.tokens_row, w.tokens_row // VECTOR, memory + w.queue
    zero = np.zeros(1, np.int64)
    known = (-1, -1, -1, -1)
    bias = 0
    per_head = g.batch * g.step_z * g.step_y * g.step_x
    for task in range(begin, end):
        h = task // per_head
        b, gz, gy, gx = _decode(task % per_head, g)
        zs = axis(depth, gz, g.depth, g.step_z)
        ys = axis(height, gy, g.height, g.step_y)
        xs = axis(width, gx, g.width, g.step_x)
        count = zs.count * ys.count * xs.count
        if count == 0:  # the dilation is larger than the map
            continue
        keys, wide = count + g.extra, padded(count) // LANES
        variants = (
            h,
            axis_variant(gz, g.depth, g.step_z),
            axis_variant(gy, g.height, g.step_y),
            axis_variant(gx, g.width, g.step_x),
        )
        if known != variants:
            known = variants
            bias = memory + w.bias if _needs_bias(rpb, zs, ys, xs) else 0
            if bias:
                _expand_bias(rpb, h, g, w, zs, ys, xs, bias)
        _copy_group(q, b, h, gz, gy, gx, g, zs, ys, xs, memory + w.queries, row)
        _copy_group(k, b, h, gz, gy, gx, g, zs, ys, xs, memory + w.keys, row)
        _copy_group(v, b, h, gz, gy, gx, g, zs, ys, xs, memory + w.values, row)
        if g.extra > 0:
            _copy_extra(extra_k, b, h, g, memory + w.keys + count * row, row)
            _copy_extra(extra_v, b, h, g, memory + w.values + count * row, row)
        forget(queue, w.lines)
        if task + 1 < end:
            following = task + 1
            _ask_for_group(
                queue, (q, k, v), following % per_head, following // per_head, g, depth, height,
                width,
            )  # fmt: skip
        copy_in_transposed(
            0, memory + w.queries, row, count, g.dim, memory + w.queries_t, w.lanes_row
        )
        _multiply(
            queue, zero, wide, keys, g.dim, memory + w.queries_t, w.lanes_row,
            memory + w.keys, row, F32, memory + w.s, w.lanes_row,
        )  # fmt: skip
        for i in range(0, wide * VECTOR, VECTOR):
            softmax(
                memory + w.s + i, 1, 0, 1, 0, keys, w.lanes_row, bias + i if bias else 0, 0, 0, 0,
                0, factor, memory + w.inverse + i, memory + w.lse + i,
            )  # fmt: skip
        _multiply(
            queue, zero, vectors, count, keys, memory + w.values, row, memory + w.s, F32,
            w.lanes_row, memory + w.sums, row,
        )  # fmt: skip
        for i in range(count):
            _scale(memory + w.sums + i * row, row, get(memory + w.inverse + F32 * i))
        _write_group(out, b, h, gz, gy, gx, g, zs, ys, xs, memory + w.sums, row)
        source = memory + w.lse
        for z in range(zs.count):
            for y in range(ys.count):
                place = _lse_place(lse, b, h, gz + z * g.step_z, gy + y * g.step_y, gx, g)
                for x in range(xs.count):
                    put(place + F32 * x * g.step_x, get(source))
                    source += F32


@jit
def backward(begin, end, memory, g, w, scale, grad, q, k, v, lse, rpb, extra_k, extra_v, dq,
             dk, dv, drpb, dextra_k, dextra_v, depth, height, width):  # fmt: skip
    """Gradients of units, which are some groups of a head each.

    Those of the bias are each unit's own share of a sum, those of additional keys each group's.
    """
    factor = np.float32(scale * LOG2E)
    row, vectors, queue = w.tokens_row, w.tokens_row // VECTOR, memory + w.queue
    zero = np.zeros(1, np.int64)
    known = (-1, -1, -1, -1)
    bias = dbias = 0
    per_head = g.batch * g.step_z * g.step_y * g.step_x
    units = (per_head + UNIT - 1) // UNIT
    at_keys, at_values, at_sums = memory + w.keys, memory + w.values, memory + w.sums
    at_p, at_ds = memory + w.s, memory + w.s + w.change
    if len(rpb) > 0:
        dbias = memory + w.dbias
        clear(dbias, w.change // F32)
    for unit in range(begin, end):
        h, first = unit // units, unit % units * UNIT
        last = min(first + UNIT, per_head)
        for task in range(first, last):
            b, gz, gy, gx = _decode(task, g)
            zs = axis(depth, gz, g.depth, g.step_z)
            ys = axis(height, gy, g.height, g.step_y)
            xs = axis(width, gx, g.width, g.step_x)
            count = zs.count * ys.count * xs.count
            if count == 0:
                continue
            keys, wide = count + g.extra, padded(count) // LANES
            variants = (
                h,
                axis_variant(gz, g.depth, g.step_z),
                axis_variant(gy, g.height, g.step_y),
                axis_variant(gx, g.width, g.step_x),
            )
            if known != variants:
                known = variants
                bias = memory + w.bias if _needs_bias(rpb, zs, ys, xs) else 0
                if bias:
                    _expand_bias(rpb, h, g, w, zs, ys, xs, bias)
            _copy_group(q, b, h, gz, gy, gx, g, zs, ys, xs, memory + w.queries, row)
            _copy_group(grad, b, h, gz, gy, gx, g, zs, ys, xs, memory + w.grads, row)
            _copy_group(k, b, h, gz, gy, gx, g, zs, ys, xs, at_keys, row)
            _copy_group(v, b, h, gz, gy, gx, g, zs, ys, xs, at_values, row)
            if g.extra > 0:
                _copy_extra(extra_k, b, h, g, at_keys + count * row, row)
                _copy_extra(extra_v, b, h, g, at_values + count * row, row)
            forget(queue, w.lines)
            if task + 1 < last:
                _ask_for_group(queue, (q, grad, k, v), task + 1, h, g, depth, height, width)
            for tokens, transposed in ((w.queries, w.queries_t), (w.grads, w.grads_t)):
                copy_in_transposed(
                    0, memory + tokens, row, count, g.dim, memory + transposed, w.lanes_row
                )
            for left, right, target in (
                (at_keys, w.queries_t, at_p),
                (at_values, w.grads_t, at_ds),
            ):
                _multiply(
                    queue, zero, wide, keys, g.dim, memory + right, w.lanes_row, left, row,
                    F32, target, w.lanes_row,
                )  # fmt: skip
            target = memory + w.lse
            clear(target, w.lanes_row // F32)
            for z in range(zs.count):
                for y in range(ys.count):
                    place = _lse_place(lse, b, h, gz + z * g.step_z, gy + y * g.step_y, gx, g)
                    for x in range(xs.count):
                        put(target, get(place + F32 * x * g.step_x))
                        target += F32
            for i in range(0, wide * VECTOR, VECTOR):
                softmax_gradient(
                    at_p + i, w.change, 1, 0, 1, 0, keys, w.lanes_row, bias + i if bias else 0,
                    dbias + i if dbias else 0, 0, 0, 0, 0, factor, memory + w.lse + i,
                )  # fmt: skip
            _multiply(
                queue, zero, vectors, count, keys, at_keys, row, at_ds, F32, w.lanes_row,
                at_sums, row,
            )  # fmt: skip
            _scale(at_sums, count * row, scale)
            _write_group(dq, b, h, gz, gy, gx, g, zs, ys, xs, at_sums, row)
            _multiply(
                queue, zero, vectors, keys, count, memory + w.queries, row, at_ds,
                w.lanes_row, F32, at_sums, row,
            )  # fmt: skip
            _scale(at_sums, keys * row, scale)
            _write_group(dk, b, h, gz, gy, gx, g, zs, ys, xs, at_sums, row)
            size = F32 * g.extra * g.dim
            place = (h * per_head + task) * size
            copy_out(0, at_sums + count * row, row, g.extra, g.dim, dextra_k + place, F32 * g.dim)
            _multiply(
                queue, zero, vectors, keys, count, memory + w.grads, row, at_p,
                w.lanes_row, F32, at_sums, row,
            )  # fmt: skip
            _write_group(dv, b, h, gz, gy, gx, g, zs, ys, xs, at_sums, row)
            copy_out(0, at_sums + count * row, row, g.extra, g.dim, dextra_v + place, F32 * g.dim)
            if dbias:
                following = task + 1
                if following < last:
                    _, gz, gy, gx = _decode(following, g)
                    if variants == (
                        h,
                        axis_variant(gz, g.depth, g.step_z),
                        axis_variant(gy, g.height, g.step_y),
                        axis_variant(gx, g.width, g.step_x),
                    ):
                        continue
                _reduce_bias(dbias, g, w, zs, ys, xs, drpb[unit])
