"""Neighborhood attention on the CPU by windows that slide along rows.

Queries lie in the lanes, 16 neighbors along the last axis, and so do logits, one vector for each
slot of the window. Maps are brought to rows of (dim, position) floats, where the keys at one offset
from 16 queries are a vector: no product is wasted on keys outside the windows, and the softmax
needs nothing across lanes. Near a border, where windows stop moving with their queries, some lanes
have the same key. Rows of queries that are worked on together share what is read of the keys.

Rows of keys are kept in a ring as long as other rows need them. In the backward pass the
probabilities and the gradients of logits of some rows of queries go to planes, one for each offset
from query to key, zero where there is no such pair; from there they add to the gradients of key
rows, which are kept in another ring until they are complete.
"""

import numpy as np
from numba import types

from .._ahead import ask, forget
from .._blocks import (
    clear,
    copy_in,
    copy_in_transposed,
    copy_out,
    copy_out_transposed,
    odd_lines,
    padded,
    write,
)
from .._jit import inline, jit, part
from .._vectors import F32, LANES, broadcast, get, get_int, keep, load, put, select, store
from ._maps import (
    BAND,
    GEOMETRY,
    LOG2E,
    TENSOR,
    TILE,
    VECTOR,
    axis,
    axis_variant,
    origin,
    softmax,
    softmax_gradient,
)
from ._plan import BLOCK
from ._products import (
    add_gathered,
    extra_gathered,
    extra_scores,
    extra_weighted,
    scores,
    weighted,
)
from ._scratch import LEFT, SCRATCH
from ._tile import lanes_of

__all__ = ["backward", "forward"]

INFINITY = np.float32(np.inf)
ONE = np.float32(1)
ZERO = np.float32(0)

TABLES, SUMS, INDICES = types.float32[:, :, ::1], types.float32[:, ::1], types.int32[:, ::1]
PLAN, TILES = types.UniTuple(types.int64[:, ::1], 4), types.Array(TILE, 1, "C")


@inline
def _row_place(tensor, base, g, z, y, x):
    """Address of a position of a group."""
    return base + z * g.step_z * tensor.z + y * g.step_y * tensor.y + x * g.step_x * tensor.x


@jit
def _ask_for(queue, tensor, base, g, lines, end, height, tile):
    """Adds positions of a tile in rows ``lines`` to ``end`` to what is asked for."""
    size = g.dim * (F32 if tensor.dtype == 0 else 2)
    for i in range(lines, end):
        place = _row_place(tensor, base, g, i // height, i % height, tile.query)
        ask(queue, place, g.step_x * tensor.x, tile.count, size)


@part
def _to_planes(tile: TILE, low, s, change, planes, plane, count, row, target, target_change,
               by_plane, by_row, pitch):  # fmt: skip
    """Copies what slots hold to planes of offsets, there to the lanes of the keys.

    What is ``change`` bytes behind goes to what is ``target_change`` bytes behind.
    """
    offset = tile.key - tile.query
    begin, end = max(tile.low - offset, 0), min(tile.high - offset + 1, tile.slots)
    regular, zero = lanes_of(tile.regular), broadcast(ZERO)
    # One offset further is the next plane, and the next lane.
    step = pitch + F32
    for z in range(planes):
        for r in range(count):
            source = s + z * plane + r * row
            place = target + z * by_plane + r * by_row - low * pitch
            for o in range(tile.low, tile.high + 1):
                if o - offset < begin or o - offset >= end:
                    store(place + o * step, zero)
                    store(place + target_change + o * step, zero)
            for t in range(begin, end):
                at = place + (offset + t) * step
                store(at, select(regular, load(source + t * VECTOR), zero))
                store(at + target_change, select(regular, load(source + change + t * VECTOR), zero))
    if tile.edges == 0:
        return
    for lane in range(tile.count):
        if tile.regular >> lane & 1:
            continue
        moved = offset - lane + (tile.shift0 if tile.mask0 >> lane & 1 else tile.shift1)
        begin, end = max(tile.low - moved, 0), min(tile.high - moved + 1, tile.slots)
        for z in range(planes):
            for r in range(count):
                source = s + z * plane + r * row + F32 * lane
                place = target + z * by_plane + r * by_row - low * pitch + moved * step + F32 * lane
                for t in range(begin, end):
                    put(place + t * step, get(source + t * VECTOR))
                    put(place + target_change + t * step, get(source + change + t * VECTOR))


@jit
def _write_lanes(source, count, target, step):
    """Copies lanes to floats ``step`` bytes apart."""
    if step == 4:
        write(0, target, load(source), count)
    else:
        for lane in range(count):
            put(target + lane * step, get(source + 4 * lane))


@jit
def _read_lanes(source, count, step, target):
    """Copies floats ``step`` bytes apart to lanes, zeros to the others."""
    store(target, broadcast(ZERO))
    for lane in range(count):
        put(target + 4 * lane, get(source + lane * step))


@part
def _expand_bias(rpb: TABLES, head, lanes: INDICES, band: BAND, w: SCRATCH, target):
    """Writes the bias (row of a window, slot, lane) to the base 2; -inf where a slot is void."""
    for r in range(w.bias_rows):
        for i in range(band.vectors):
            place = target + (r * w.vectors + i) * VECTOR
            for lane in range(LANES):
                index = lanes[band.vector + i, lane]
                value = -INFINITY if index < 0 else ZERO
                if index >= 0 and len(rpb) > 0:
                    value = rpb[head, r, index] * LOG2E
                put(place + F32 * lane, value)


@part
def _reduce_bias(dbias, tiles: TILES, band: BAND, lanes: INDICES, w: SCRATCH, sums: SUMS):
    """Adds the gradients of what ``_expand_bias`` writes to those of the table (row, index)."""
    for r in range(w.bias_rows):
        for i in range(band.tile, band.tile + band.tiles):
            tile = tiles[i]
            first = max(band.first - tile.query, 0)
            end = min(band.end - tile.query, tile.count)
            for t in range(tile.slots):
                place = dbias + (r * w.vectors + tile.vector - band.vector + t) * VECTOR
                for lane in range(first, end):
                    index = lanes[tile.vector + t, lane]
                    if index >= 0:
                        sums[r, index] += get(place + F32 * lane)


@inline
def _place_of_sums(task, h, g, bands):
    """Where a task has its share of sums: those of a head follow one another."""
    others = g.step_z * g.step_y
    return (h * bands * g.step_x * g.batch + task // (others * g.heads)) * others + task % others


@inline
def _bias_of(tile, band, g, w, z0, z, y, rows, biased):
    """Where, in the bias, the first row is that a query row sees in a tile; 0 where it is all 0."""
    if biased:
        row = (z0 - z + g.kernel_z - 1) * (2 * g.kernel_y - 1) + rows.start[y] - y + g.kernel_y - 1
        return w.bias + (row * w.vectors + tile.vector - band.vector) * VECTOR
    if tile.masked:
        return w.bias + (tile.vector - band.vector) * VECTOR
    return 0


@inline
def _lse_place(lse, g, b, h, gz, gy, gx, z, y, x):
    plane = (b * g.heads + h) * g.depth + gz + z * g.step_z
    row = plane * g.height + gy + y * g.step_y
    return lse + F32 * (row * g.width + gx + x * g.step_x)


@jit
def _copy_row(tensor, place, g, count, rows, target, pitch):
    """Brings positions of a map to floats (dim, position).

    They are first copied to ``rows``, one after another: that way memory is read much faster than
    16 at a time, between which they are transposed.
    """
    row = odd_lines(F32 * padded(g.dim))
    copy_in(tensor.dtype, place, g.step_x * tensor.x, count, g.dim, rows, row)
    copy_in_transposed(0, rows, row, count, g.dim, target, pitch)


@jit
def _copy_rows(tensors, bases, g, lines, end, height, first, last, rows, table, beside, pitch):
    """Brings rows of two maps to the places in a table, the second ``beside`` bytes further."""
    for i in range(lines, end):
        target = get_int(table + 8 * i) + LEFT
        for n in range(2):
            place = _row_place(tensors[n], bases[n], g, i // height, i % height, first)
            _copy_row(tensors[n], place, g, last - first, rows, target, pitch)
            target += beside


@inline
def _share(index, length, count):
    """Begin of one of ``count`` even shares."""
    return index * length // count


@inline
def _stretch(index, count, zs, ys):
    """First and end of the blocks of rows of a share, and the first row of keys that they see."""
    blocks = (ys.count + BLOCK - 1) // BLOCK
    first = _share(index, zs.count * blocks, count)
    last = _share(index + 1, zs.count * blocks, count)
    read = zs.count * ys.count
    for block in range(first, last):
        y0 = _share(block % blocks, ys.count, blocks)
        read = min(read, zs.start[block // blocks] * ys.count + ys.start[y0])
    return first, last, read


@inline
def _decode(task, g, bands):
    """Head, band, batch and group of a task; neighbors are heads of a sample, near in memory."""
    rest, gy = task // g.step_y, task % g.step_y
    rest, gz = rest // g.step_z, rest % g.step_z
    rest, h = rest // g.heads, rest % g.heads
    rest, b = rest // g.batch, rest % g.batch
    rest, gx = rest // g.step_x, rest % g.step_x
    return h, rest, b, gz, gy, gx


@part
def _ask_for_task(
    queue,
    task,
    shares,
    q: TENSOR,
    k: TENSOR,
    v: TENSOR,
    g: GEOMETRY,
    bands,
    depth: PLAN,
    height: PLAN,
    tile: TILE,
):
    """Adds what a task of ``forward`` begins with, at the positions of a tile."""
    h, _, b, gz, gy, gx = _decode(task // shares, g, bands)
    zs = axis(depth, gz, g.depth, g.step_z)
    ys = axis(height, gy, g.height, g.step_y)
    first, last, read = _stretch(task % shares, shares, zs, ys)
    if first < last:
        blocks = (ys.count + BLOCK - 1) // BLOCK
        line = first // blocks * ys.count + _share(first % blocks, ys.count, blocks)
        total = zs.count * ys.count
        base = origin(q, b, h, gz, gy, gx)
        _ask_for(queue, q, base, g, line, min(line + BLOCK, total), ys.count, tile)
        for x in (k, v):
            base = origin(x, b, h, gz, gy, gx)
            _ask_for(queue, x, base, g, read, min(read + 2 * BLOCK, total), ys.count, tile)


@jit
def forward(begin, end, memory, g, w, scale, q, k, v, out, lse, rpb, extra_k, extra_v, depth,
            height, columns, shares):  # fmt: skip
    """Output and log-sum-exp of tasks: shares of the rows of a band of a group of a head."""
    bands, tiles, _, lanes = columns
    factor = np.float32(scale * LOG2E)
    queue, at_q = memory + w.queue, memory + w.queries
    at_s, at_sums = memory + w.s, memory + w.sums
    at_extra, at_stats = memory + w.extra, memory + w.stats
    extra_size = F32 * g.extra * w.deep
    biased = len(rpb) > 0
    by_row = w.vectors * VECTOR if biased else 0
    by_plane = by_row * (2 * g.kernel_y - 1)
    lines = np.empty(depth[0].shape[1] * height[0].shape[1], np.int64)
    for i in range(len(lines)):
        lines[i] = memory + i % w.ring * 2 * w.key_row
    starts = np.empty((2, g.kernel_z * w.reach), np.int64)
    zero = np.zeros(1, np.int64)
    known, known_extra = (-1, -1, -1), (-1, -1)

    for task in range(begin, end):
        h, at_band, b, gz, gy, gx = _decode(task // shares, g, bands.shape[1])
        zs = axis(depth, gz, g.depth, g.step_z)
        ys = axis(height, gy, g.height, g.step_y)
        variant = axis_variant(gx, g.width, g.step_x)
        band = bands[variant, at_band]
        # Without a bias, what is masked is so for all heads.
        wanted = (h if biased else 0, variant, at_band)
        if known != wanted:
            # What rows do not fill stays zero as long as they are as long.
            if known[1:] != wanted[1:]:
                clear(memory, w.planes_end // F32)
            known = wanted
            _expand_bias(rpb, h, lanes, band, w, memory + w.bias)
        if g.extra > 0 and known_extra != (b, h):
            known_extra = (b, h)
            _copy_extra(extra_k, b, h, g, at_extra)
            _copy_extra(extra_v, b, h, g, at_extra + extra_size)
        q_base, out_base = origin(q, b, h, gz, gy, gx), origin(out, b, h, gz, gy, gx)
        kv_bases = origin(k, b, h, gz, gy, gx), origin(v, b, h, gz, gy, gx)

        total = zs.count * ys.count
        blocks = (ys.count + BLOCK - 1) // BLOCK
        first, last, read = _stretch(task % shares, shares, zs, ys)
        for block in range(first, last):
            z = block // blocks
            y0 = _share(block % blocks, ys.count, blocks)
            y1 = _share(block % blocks + 1, ys.count, blocks)
            for y in range(y0, y1):
                place = _row_place(q, q_base, g, z, y, band.query)
                _copy_row(
                    q, place, g, band.query_end - band.query, memory + w.rows,
                    at_q + (y - y0) * w.query_row + LEFT, w.query_pitch,
                )  # fmt: skip
            needed = (zs.end[z] - 1) * ys.count + ys.end[y1 - 1]
            _copy_rows(
                (k, v), kv_bases, g, read, needed, ys.count, band.key, band.key_end,
                memory + w.rows, lines.ctypes.data, w.key_row, w.key_pitch,
            )  # fmt: skip
            read = max(read, needed)
            z0, z1 = zs.start[z], zs.end[z]
            span = ys.end[y1 - 1] - ys.start[y0]
            line, line_end = z * ys.count + y0, z * ys.count + y1
            for i in range(band.tile, band.tile + band.tiles):
                tile = tiles[i]
                forget(queue, w.lines)
                _ask_for(queue, out, out_base, g, line, line_end, ys.count, tile)
                if block + 1 < last:
                    after, needed = min(line_end + BLOCK, total), min(read + BLOCK, total)
                    _ask_for(queue, q, q_base, g, line_end, after, ys.count, tile)
                    _ask_for(queue, k, kv_bases[0], g, read, needed, ys.count, tile)
                    _ask_for(queue, v, kv_bases[1], g, read, needed, ys.count, tile)
                elif task + 1 < end:
                    _ask_for_task(
                        queue, task + 1, shares, q, k, v, g, bands.shape[1], depth, height, tile
                    )
                at = at_q + LEFT + F32 * (tile.query - band.query)
                shift = LEFT + F32 * (tile.key - band.key)
                slots = tile.slots * VECTOR
                to_extra = (z1 - z0) * span * slots
                scores(
                    queue, tile, z0, z1, y0, y1, ys, g.dim, at, w.query_row, w.query_pitch,
                    zero.ctypes.data, lines.ctypes.data, shift, w.key_pitch, at_s, w.s_row,
                )  # fmt: skip
                extra_scores(
                    queue, y1 - y0, g, at, w.query_row, w.query_pitch, zero, at_extra,
                    at_s + to_extra, w.s_row,
                )  # fmt: skip
                for y in range(y0, y1):
                    row = at_s + (y - y0) * w.s_row
                    bias = _bias_of(tile, band, g, w, z0, z, y, ys, biased)
                    seen = ys.end[y] - ys.start[y]
                    # Without a bias the rows of a plane are one run.
                    together = 1 if bias else seen
                    softmax(
                        row + (ys.start[y] - ys.start[y0]) * slots, z1 - z0, span * slots,
                        seen // together, slots, tile.slots * together, VECTOR,
                        memory + bias if bias else 0, by_plane, by_row, row + to_extra, g.extra,
                        factor, at_stats + (1 + y - y0) * VECTOR, at_stats,
                    )  # fmt: skip
                    place = _lse_place(lse, g, b, h, gz, gy, gx, z, y, tile.query)
                    _write_lanes(at_stats, tile.count, place, F32 * g.step_x)
                weighted(
                    queue, tile, z0, z1, y0, y1, ys, g.dim, at_s, w.s_row, starts,
                    lines.ctypes.data, shift + w.key_row, w.key_pitch, at_sums, w.sum_row,
                )  # fmt: skip
                extra_weighted(
                    queue, y1 - y0, g, at_s + to_extra, w.s_row, zero, at_extra + extra_size,
                    at_sums, w.sum_row,
                )  # fmt: skip
                for y in range(y0, y1):
                    inverse = load(at_stats + (1 + y - y0) * VECTOR)
                    place = _row_place(out, out_base, g, z, y, tile.query)
                    sums = at_sums + (y - y0) * w.sum_row
                    _emit_row(out, place, g, tile.count, sums, 0, inverse)
    keep(lines)


@jit
def backward(begin, end, memory, g, w, scale, grad, q, k, v, lse, rpb, extra_k, extra_v, dq,
             dk, dv, drpb, dextra_k, dextra_v, depth, height, columns):  # fmt: skip
    """Gradients of tasks, which are a band of a group of a head each.

    Those of the bias and of additional keys and values are each task's own share of a sum.
    """
    bands, tiles, key_tiles, lanes = columns
    factor = np.float32(scale * LOG2E)
    one, scales = broadcast(ONE), broadcast(np.float32(scale))
    queue, at_q = memory + w.queue, memory + w.queries
    at_s, at_sums = memory + w.s, memory + w.sums
    at_planes, at_kept = memory + w.planes, memory + w.kept
    at_extra, at_tokens, at_stats = memory + w.extra, memory + w.tokens, memory + w.stats
    extra_size = F32 * g.extra * w.deep
    change = BLOCK * w.s_row
    biased = len(rpb) > 0
    by_row = w.vectors * VECTOR if biased else 0
    by_plane = by_row * (2 * g.kernel_y - 1)
    lines = np.empty(depth[0].shape[1] * height[0].shape[1], np.int64)
    for i in range(len(lines)):
        lines[i] = memory + i % w.ring * 2 * w.key_row
    q_lines = np.empty(BLOCK, np.int64)
    for i in range(BLOCK):
        q_lines[i] = at_q + i * 2 * w.query_row
    starts = np.empty((2, max(g.kernel_z * w.reach, BLOCK)), np.int64)
    zero = np.zeros(1, np.int64)
    known, known_extra = (-1, -1, -1), (-1, -1)
    clear(at_kept, w.sum_ring * w.sum_block // F32)

    for task in range(begin, end):
        h, at_band, b, gz, gy, gx = _decode(task, g, bands.shape[1])
        own = _place_of_sums(task, h, g, bands.shape[1])
        zs = axis(depth, gz, g.depth, g.step_z)
        ys = axis(height, gy, g.height, g.step_y)
        variant = axis_variant(gx, g.width, g.step_x)
        band = bands[variant, at_band]
        # Without a bias, what is masked is so for all heads.
        wanted = (h if biased else 0, variant, at_band)
        if known != wanted:
            # What rows do not fill stays zero as long as they are as long.
            if known[1:] != wanted[1:]:
                clear(memory, w.planes_end // F32)
            known = wanted
            _expand_bias(rpb, h, lanes, band, w, memory + w.bias)
        if biased:
            clear(memory + w.dbias, w.bias_rows * w.vectors * LANES)
        if g.extra > 0:
            clear(at_extra + 2 * extra_size, 2 * g.extra * w.deep)
            if known_extra != (b, h):
                known_extra = (b, h)
                _copy_extra(extra_k, b, h, g, at_extra)
                _copy_extra(extra_v, b, h, g, at_extra + extra_size)
        q_bases = origin(q, b, h, gz, gy, gx), origin(grad, b, h, gz, gy, gx)
        kv_bases = origin(k, b, h, gz, gy, gx), origin(v, b, h, gz, gy, gx)
        dq_base = origin(dq, b, h, gz, gy, gx)
        dk_base, dv_base = origin(dk, b, h, gz, gy, gx), origin(dv, b, h, gz, gy, gx)
        total = zs.count * ys.count
        blocks = (ys.count + BLOCK - 1) // BLOCK
        read, complete = 0, 0
        for block in range(zs.count * blocks):
            z = block // blocks
            y0 = _share(block % blocks, ys.count, blocks)
            y1 = _share(block % blocks + 1, ys.count, blocks)
            line, line_end = z * ys.count + y0, z * ys.count + y1
            _copy_rows(
                (q, grad), q_bases, g, line, line_end, ys.count, band.query, band.query_end,
                memory + w.rows, q_lines.ctypes.data - 8 * line, w.query_row, w.query_pitch,
            )  # fmt: skip
            needed = (zs.end[z] - 1) * ys.count + ys.end[y1 - 1]
            _copy_rows(
                (k, v), kv_bases, g, read, needed, ys.count, band.key, band.key_end,
                memory + w.rows, lines.ctypes.data, w.key_row, w.key_pitch,
            )  # fmt: skip
            read = max(read, needed)
            z0, z1 = zs.start[z], zs.end[z]
            span = ys.end[y1 - 1] - ys.start[y0]
            for i in range(band.tile, band.tile + band.tiles):
                tile = tiles[i]
                forget(queue, w.lines)
                after, needed = min(line_end + BLOCK, total), min(read + BLOCK, total)
                _ask_for(queue, q, q_bases[0], g, line_end, after, ys.count, tile)
                _ask_for(queue, grad, q_bases[1], g, line_end, after, ys.count, tile)
                _ask_for(queue, k, kv_bases[0], g, read, needed, ys.count, tile)
                _ask_for(queue, v, kv_bases[1], g, read, needed, ys.count, tile)
                lane = LEFT + F32 * (tile.query - band.query)
                on_plane = F32 * (band.margin + tile.query - band.first)
                shift = LEFT + F32 * (tile.key - band.key)
                slots = tile.slots * VECTOR
                to_extra = (z1 - z0) * span * slots
                for n in range(2):
                    # Logits, then the gradients of the probabilities.
                    at = at_q + lane + n * w.query_row
                    target = at_s + n * change
                    scores(
                        queue, tile, z0, z1, y0, y1, ys, g.dim, at, 2 * w.query_row,
                        w.query_pitch, zero.ctypes.data, lines.ctypes.data, shift + n * w.key_row,
                        w.key_pitch, target, w.s_row,
                    )  # fmt: skip
                    extra_scores(
                        queue, y1 - y0, g, at, 2 * w.query_row, w.query_pitch, zero,
                        at_extra + n * extra_size, target + to_extra, w.s_row,
                    )  # fmt: skip
                for y in range(y0, y1):
                    row = at_s + (y - y0) * w.s_row
                    slot = row + (ys.start[y] - ys.start[y0]) * slots
                    place = _lse_place(lse, g, b, h, gz, gy, gx, z, y, tile.query)
                    _read_lanes(place, tile.count, F32 * g.step_x, at_stats)
                    bias = _bias_of(tile, band, g, w, z0, z, y, ys, biased)
                    seen = ys.end[y] - ys.start[y]
                    together = 1 if bias else seen
                    softmax_gradient(
                        slot, change, z1 - z0, span * slots, seen // together, slots,
                        tile.slots * together, VECTOR, memory + bias if bias else 0,
                        memory + bias + w.dbias - w.bias if biased else 0, by_plane, by_row,
                        row + to_extra, g.extra, factor, at_stats,
                    )  # fmt: skip
                    _to_planes(
                        tile, band.low, slot, change, z1 - z0, span * slots, seen, slots,
                        at_planes + (y - y0) * 2 * w.plane_row + on_plane, w.plane_row,
                        g.kernel_y * w.offsets * w.plane_pitch, w.offsets * w.plane_pitch,
                        w.plane_pitch,
                    )  # fmt: skip
                first = max(band.first - tile.query, 0)
                count = min(band.end - tile.query, tile.count) - first
                if count <= 0:
                    continue
                weighted(
                    queue, tile, z0, z1, y0, y1, ys, g.dim, at_s + change, w.s_row, starts,
                    lines.ctypes.data, shift, w.key_pitch, at_sums, w.sum_row,
                )  # fmt: skip
                extra_weighted(
                    queue, y1 - y0, g, at_s + change + to_extra, w.s_row, zero, at_extra,
                    at_sums, w.sum_row,
                )  # fmt: skip
                for y in range(y0, y1):
                    place = _row_place(dq, dq_base, g, z, y, tile.query + first)
                    sums = at_sums + (y - y0) * w.sum_row
                    _emit_row(dq, place, g, count, sums, F32 * first, scales)
                    if g.extra > 0:
                        extra = at_s + (y - y0) * w.s_row + to_extra + F32 * first
                        place = _row_place(q, q_bases[0], g, z, y, tile.query + first)
                        extra_gathered(
                            queue, g, q, place, extra + change, count, zero, at_tokens,
                            at_extra + 2 * extra_size,
                        )  # fmt: skip
                        place = _row_place(grad, q_bases[1], g, z, y, tile.query + first)
                        extra_gathered(
                            queue, g, grad, place, extra, count, zero, at_tokens,
                            at_extra + 3 * extra_size,
                        )  # fmt: skip
            for zk in range(z0, z1):
                for share in range(blocks):
                    r0, r1 = _share(share, ys.count, blocks), _share(share + 1, ys.count, blocks)
                    if r1 <= ys.start[y0] or r0 >= ys.end[y1 - 1]:
                        continue
                    kept = at_kept + (zk * blocks + share) % w.sum_ring * w.sum_block
                    for i in range(band.key_tile, band.key_tile + band.key_tiles):
                        tile = key_tiles[i]
                        planes = at_planes + F32 * (band.margin + tile.key - band.first)
                        planes += (tile.low - band.low) * w.plane_pitch
                        at = at_q + LEFT + F32 * (tile.key - tile.low - band.query)
                        # Logits' gradients and queries, probabilities and output gradients.
                        for n in range(2):
                            add_gathered(
                                queue, tile, z, y0, y1, zk, r0, r1, zs, ys, g.dim,
                                planes + (1 - n) * w.plane_row, 2 * w.plane_row, g.kernel_y,
                                w.offsets, w.plane_pitch, at + n * w.query_row, 2 * w.query_row,
                                w.query_pitch, starts, kept, w.sum_row,
                            )  # fmt: skip
                            kept += w.sum_tile
            while complete < zs.count * blocks:
                # Key rows that no query row to come sees.
                z = complete // blocks
                y0 = _share(complete % blocks, ys.count, blocks)
                y1 = _share(complete % blocks + 1, ys.count, blocks)
                if (zs.query_end[z] - 1) * ys.count + ys.query_end[y1 - 1] > line_end:
                    break
                kept = at_kept + complete % w.sum_ring * w.sum_block
                complete += 1
                at = kept
                for i in range(band.key_tile, band.key_tile + band.key_tiles):
                    tile = key_tiles[i]
                    for y in range(y0, y1):
                        sums = at + (y - y0) * w.sum_row
                        place = _row_place(dk, dk_base, g, z, y, tile.key)
                        _emit_row(dk, place, g, tile.count, sums, 0, scales)
                        place = _row_place(dv, dv_base, g, z, y, tile.key)
                        _emit_row(dv, place, g, tile.count, sums + w.sum_tile, 0, one)
                    at += 2 * w.sum_tile
                clear(kept, w.sum_block // F32)
        if biased:
            _reduce_bias(memory + w.dbias, tiles, band, lanes, w, drpb[own])
        if g.extra > 0:
            for i in range(0, extra_size, VECTOR):
                place = at_extra + 2 * extra_size + i
                store(place, load(place) * scales)
            size = F32 * g.extra * g.dim
            for n in range(2):
                copy_out(
                    0, at_extra + (2 + n) * extra_size, F32 * w.deep, g.extra, g.dim,
                    (dextra_v if n else dextra_k) + own * size, F32 * g.dim,
                )  # fmt: skip
    keep(lines)
    keep(q_lines)


@jit
def _emit_row(tensor, place, g, count, sums, first, factors):
    """Writes the lanes from byte ``first`` on to positions of a map, times ``factors``."""
    for i in range(g.dim):
        store(sums + i * VECTOR, load(sums + i * VECTOR) * factors)
    copy_out_transposed(
        tensor.dtype, sums + first, VECTOR, count, g.dim, place, g.step_x * tensor.x
    )


@jit
def _copy_extra(tensor, b, h, g, target):
    """Brings the additional keys or values of a head to floats; they lie along ``x``."""
    place = origin(tensor, b, h, 0, 0, 0)
    copy_in(tensor.dtype, place, tensor.x, g.extra, g.dim, target, F32 * padded(g.dim))
