"""Tokens of regions: lists of where they are in memory, and rows that go from there and back.

A map's ``place`` is its sides, and the grid of regions over it: how many there are a side, and
their sides. Tensors are told by their ``layout``: code of the dtype, address, and strides in bytes
of batch, rows, columns and heads.
"""

import numpy as np
from numba import types

from .._blocks import clear, padded, write
from .._elements import load_as_float
from .._jit import inline, integers, jit, part
from .._transposition import gather_transposed
from .._vectors import LANES, broadcast, get, get_int, load, prefetch, put, store

__all__ = [
    "QUERIES",
    "add_rows",
    "clear_map",
    "clear_padding",
    "copy_map",
    "count_items",
    "count_parts",
    "count_regions",
    "gather_rows",
    "gather_rows_transposed",
    "list_at",
    "list_keys",
    "list_queries",
    "list_tokens",
    "locate",
    "prefetch_rows",
    "scatter_rows",
]

LAYOUT = PLACE = integers(6)
LIST = types.int64[::1]
QUERIES = 64
"""Most queries of an item."""


@jit
def count_regions(place):
    return place[2] * place[3]


@jit
def count_parts(place):
    """Items of a region of queries."""
    return (place[4] * place[5] + QUERIES - 1) // QUERIES


@jit
def count_items(place):
    """Items of a map of queries."""
    return place[2] * place[3] * ((place[4] * place[5] + QUERIES - 1) // QUERIES)


@part
def list_tokens(
    region, place: PLACE, keep_padding: types.boolean, ys: LIST, xs: LIST, count
) -> types.int64:
    """Appends rows and columns of a region's tokens to two lists; padding has row -1.

    Padding is left out unless ``keep_padding``, and always where a region has nothing else.

    Returns:
        Length of the lists.
    """
    height, width, _, columns, tall, wide = place
    top, left = region // columns * tall, region % columns * wide
    if top >= height or left >= width:
        return count
    for y in range(top, top + tall):
        for x in range(left, left + wide):
            inside = y < height and x < width
            if inside or keep_padding:
                ys[count] = y if inside else -1
                xs[count] = x
                count += 1
    return count


@part
def locate(layout: LAYOUT, batch, ys: LIST, xs: LIST, count, rows: LIST):
    """Writes the addresses of listed tokens, filled up to 16s with that of some token."""
    _, address, by_batch, by_row, by_column, _ = layout
    address += batch * by_batch
    for i in range(count):
        rows[i] = address + ys[i] * by_row + xs[i] * by_column if ys[i] >= 0 else address
    for i in range(count, padded(count)):
        rows[i] = address


@jit
def list_queries(item, place, layouts, tokens, rows):
    """Lists the queries of an item, and where they are in tensors; returns how many there are.

    ``tokens`` gets rows and columns, ``rows`` the addresses in each of the tensors.
    """
    index, part = divmod(item, count_parts(place))
    batch, region = divmod(index, count_regions(place))
    ys, xs = tokens[0], tokens[1]
    first = part * QUERIES
    count = max(min(list_tokens(region, place, False, ys, xs, 0) - first, QUERIES), 0)
    for i in range(len(layouts)):
        locate(layouts[i], batch, ys[first:], xs[first:], count, rows[i])
    return count


@jit
def list_keys(item, topk, q_map, k_map, zero, layouts, routing, tokens, rows):
    """Lists the keys that an item's queries attend to, as ``list_queries`` does."""
    index = item // count_parts(q_map)
    batch = index // count_regions(q_map)
    ys, xs = tokens[0], tokens[1]
    count = 0
    for i in range(topk):
        chosen = get_int(routing + 8 * (index * topk + i))
        count = list_tokens(chosen, k_map, zero, ys, xs, count)
    for i in range(len(layouts)):
        locate(layouts[i], batch, ys, xs, count, rows[i])
    return count


@inline
def list_at(lists, slot, index):
    """Address of a list of addresses."""
    return np.int64(lists.ctypes.data) + slot * lists.strides[0] + index * lists.strides[1]


@inline
def _gather_column(dtype, rows, shift, count, columns, target, target_row):
    for i in range(count):
        value = load_as_float(dtype, get_int(rows + 8 * i) + shift, columns)
        store(target + i * target_row, value)


@part
def gather_rows(layout: LAYOUT, head, rows, count, columns, target, target_row):
    """Copies rows behind addresses to floats, filled up to 16s with zeros."""
    dtype, shift = layout[0], head * layout[5]
    for j in range(0, columns, LANES):
        place, width = target + 4 * j, min(columns - j, LANES)
        if dtype == 0:
            _gather_column(0, rows, shift + 4 * j, count, width, place, target_row)
        elif dtype == 1:
            _gather_column(1, rows, shift + 2 * j, count, width, place, target_row)
        else:
            _gather_column(2, rows, shift + 2 * j, count, width, place, target_row)


@part
def gather_rows_transposed(layout: LAYOUT, head, rows, count, columns, target, target_row):
    """Copies as ``gather_rows``, but to ``columns`` x ``count`` floats, both filled up to 16s."""
    dtype, shift = layout[0], head * layout[5]
    size = 4 if dtype == 0 else 2
    for i in range(0, count, LANES):
        for j in range(0, columns, LANES):
            at, source, width = rows + 8 * i, shift + j * size, min(columns - j, LANES)
            place = target + j * target_row + 4 * i
            if dtype == 0:
                gather_transposed(0, at, source, width, place, target_row)
            elif dtype == 1:
                gather_transposed(1, at, source, width, place, target_row)
            else:
                gather_transposed(2, at, source, width, place, target_row)


@part
def prefetch_rows(layout: LAYOUT, head, rows, count, columns):
    """Begins to bring rows behind addresses."""
    shift, length = head * layout[5], columns * (4 if layout[0] == 0 else 2)
    for i in range(count):
        row = get_int(rows + 8 * i) + shift
        for j in range(0, length, 64):
            prefetch(row + j)


@part
def scatter_rows(layout: LAYOUT, head, rows, count, columns, source, source_row, factors):
    """Copies rows of floats, each times its factor, to behind addresses."""
    dtype, shift = layout[0], head * layout[5]
    size = 4 if dtype == 0 else 2
    for i in range(count):
        row, factor = get_int(rows + 8 * i) + shift, broadcast(get(factors + 4 * i))
        for j in range(0, columns, LANES):
            value = load(source + i * source_row + 4 * j) * factor
            write(dtype, row + j * size, value, columns - j)


@part
def add_rows(source, source_row, count, columns, ys: LIST, layout: LAYOUT, head, rows):
    """Adds rows of floats to those behind addresses, whole vectors of them; not for padding."""
    shift = head * layout[5]
    for i in range(count):
        if ys[i] >= 0:
            target = get_int(rows + 8 * i) + shift
            for j in range(0, columns, LANES):
                value = load(source + i * source_row + 4 * j)
                store(target + 4 * j, load(target + 4 * j) + value)


@part
def clear_padding(ys: LIST, count, columns, x, x_row, x_step):
    """Zeros what was read for padding: row i is at ``x + i x_row``."""
    for i in range(count):
        if ys[i] < 0:
            for j in range(columns):
                put(x + i * x_row + j * x_step, np.float32(0))


@part
def clear_map(layout: LAYOUT, batch, head, height, width, columns):
    """Zeros all places of a head's map of floats, whole vectors of them."""
    _, address, by_batch, by_row, by_column, by_head = layout
    address += batch * by_batch + head * by_head
    for y in range(height):
        for x in range(width):
            clear(address + y * by_row + x * by_column, padded(columns))


@part
def copy_map(source, layout: LAYOUT, batch, head, height, width, columns):
    """Copies rows of floats, filled up to 16s, to all places of a head's map."""
    dtype, address, by_batch, by_row, by_column, by_head = layout
    size, source_row = 4 if dtype == 0 else 2, 4 * padded(columns)
    address += batch * by_batch + head * by_head
    for y in range(height):
        for x in range(width):
            for j in range(0, columns, LANES):
                value = load(source + (y * width + x) * source_row + 4 * j)
                write(dtype, address + y * by_row + x * by_column + j * size, value, columns - j)
