"""Products of windows that slide along rows, in register tiles; see ``_slide`` for the terms."""

from numba import types

from .._blocks import clear, copy_in, padded
from .._jit import inline, jit, part
from .._vectors import F32, LANES, get_int
from ._maps import KEY_TILE, ROWS, TILE, VECTOR
from ._tile import UNIFORM, multiply_tiles

__all__ = [
    "add_gathered",
    "extra_gathered",
    "extra_scores",
    "extra_weighted",
    "scores",
    "weighted",
]

TABLE = types.int64[:, ::1]


@inline
def _same_queries(rows, y0, y1, r):
    """Query rows from ``y0`` to ``y1`` that see key row ``r``, and the first that others see."""
    low = y0
    while rows.end[low] <= r:
        low += 1
    high = low
    while high < y1 and rows.start[high] <= r:
        high += 1
    return low, high, rows.end[low] if high == y1 else min(rows.end[low], rows.start[high])


@part
def scores(
    queue, tile: TILE, z0, z1, y0, y1, rows: ROWS, dim, q, q_row, q_pitch, zero, table, shift,
    k_pitch, s, s_row,
):  # fmt: skip
    """Inner products of queries with the keys of their windows, (row, key row, slot, lane).

    Query rows ``y0 <= y < y1`` see key rows from ``rows.start[y]`` to ``rows.end[y]`` of each plane
    from ``z0`` to ``z1``; slots of all of them count from ``rows.start[y0]``.
    """
    first, last = rows.start[y0], rows.end[y1 - 1]
    slots, r = tile.slots * VECTOR, first
    while r < last:
        low, high, end = _same_queries(rows, y0, y1, r)
        for z in range(z0, z1):
            place = s + ((z - z0) * (last - first) + r - first) * slots
            multiply_tiles(
                tile.count, high - low, tile.slots, tile.edges, 1, dim,
                zero, q + (low - y0) * q_row, q_row, q_pitch,
                table + 8 * (z * rows.count + r), shift, 4, k_pitch,
                4 * tile.shift0, tile.mask0, 4 * tile.shift1, tile.mask1,
                place + (low - y0) * s_row, s_row, VECTOR, 0, end - r, 8, slots, queue,
            )  # fmt: skip
        r = end


@part
def weighted(
    queue, tile: TILE, z0, z1, y0, y1, rows: ROWS, dim, p, p_row, starts: TABLE, table, shift,
    pitch, sums, sums_row,
):  # fmt: skip
    """Sums of the values of windows, weighted by the slots of ``scores``: (row, dim, lane).

    ``starts`` has space for addresses of weights and values, one for each row of a window.
    """
    first, last = rows.start[y0], rows.end[y1 - 1]
    for n in range(y1 - y0):
        clear(sums + n * sums_row, dim * LANES)
    r = first
    while r < last:
        low, high, end = _same_queries(rows, y0, y1, r)
        outer = 0
        for z in range(z0, z1):
            for key in range(r, end):
                at = (z - z0) * (last - first) + key - first
                starts[0, outer] = p + at * tile.slots * VECTOR
                starts[1, outer] = get_int(table + 8 * (z * rows.count + key))
                outer += 1
        multiply_tiles(
            tile.count, high - low, dim, tile.edges, outer, tile.slots,
            starts[0].ctypes.data, (low - y0) * p_row, p_row, VECTOR,
            starts[1].ctypes.data, shift, pitch, 4,
            4 * tile.shift0, tile.mask0, 4 * tile.shift1, tile.mask1,
            sums + (low - y0) * sums_row, sums_row, VECTOR, 1, 1, 0, 0, queue,
        )  # fmt: skip
        r = end


@part
def add_gathered(
    queue, tile: KEY_TILE, z, y0, y1, zk, r0, r1, depth: ROWS, rows: ROWS, dim, planes, planes_row,
    kernel_y, offsets, plane_pitch, q, q_row, q_pitch, starts: TABLE, sums, sums_row,
):  # fmt: skip
    """Adds the queries that see keys, weighted by planes of offsets: (key row, dim, lane).

    Query rows are ``y0 <= y < y1`` of plane ``z``, and key rows ``r0 <= r < r1`` of plane ``zk``.
    """
    by_row = offsets * plane_pitch
    y, last = max(rows.query[r0], y0), min(rows.query_end[r1 - 1], y1)
    while y < last:
        # Query rows from here on that see the same of these key rows.
        low, high = max(rows.start[y], r0), min(rows.end[y], r1)
        end = y + 1
        while end < last and (max(rows.start[end], r0) == low and min(rows.end[end], r1) == high):
            end += 1
        for query in range(y, end):
            at = (zk - depth.start[z]) * kernel_y + low - rows.start[query]
            starts[0, query - y] = planes + (query - y0) * planes_row + at * by_row
            starts[1, query - y] = q + (query - y0) * q_row
        multiply_tiles(
            tile.count, high - low, dim, 0, end - y, tile.high - tile.low + 1,
            starts[0].ctypes.data, 0, by_row, plane_pitch,
            starts[1].ctypes.data, 0, q_pitch, -4,
            0, 0, 0, 0,
            sums + (low - r0) * sums_row, sums_row, VECTOR, 1, 1, 0, 0, queue,
        )  # fmt: skip
        y = end


@jit
def extra_scores(queue, rows, g, q, q_row, q_pitch, zero, keys, s, s_row):
    """Inner products of query rows with additional keys: (row, key, lane)."""
    if g.extra > 0:
        at = zero.ctypes.data
        multiply_tiles(
            LANES, rows, g.extra, UNIFORM, 1, g.dim,
            at, q, q_row, q_pitch,
            at, keys, 4 * padded(g.dim), 4,
            0, 0, 0, 0,
            s, s_row, VECTOR, 0, 1, 0, 0, queue,
        )  # fmt: skip


@jit
def extra_weighted(queue, rows, g, p, p_row, zero, values, sums, sums_row):
    """Adds additional values weighted by ``p`` (row, value, lane): (row, dim, lane)."""
    if g.extra > 0:
        at = zero.ctypes.data
        multiply_tiles(
            LANES, rows, g.dim, UNIFORM, 1, g.extra,
            at, p, p_row, VECTOR,
            at, values, 4, 4 * padded(g.dim),
            0, 0, 0, 0,
            sums, sums_row, VECTOR, 1, 1, 0, 0, queue,
        )  # fmt: skip


@jit
def extra_gathered(queue, g, queries, place, p, count, zero, tokens, sums):
    """Adds the sums of ``count`` queries weighted by ``p`` (key, lane): (key, dim)."""
    at, row = zero.ctypes.data, F32 * padded(g.dim)
    copy_in(queries.dtype, place, g.step_x * queries.x, count, g.dim, tokens, row)
    multiply_tiles(
        LANES, row // VECTOR, g.extra, UNIFORM, 1, count,
        at, tokens, VECTOR, row,
        at, p, VECTOR, F32,
        0, 0, 0, 0,
        sums, VECTOR, row, 1, 1, 0, 0, queue,
    )  # fmt: skip
