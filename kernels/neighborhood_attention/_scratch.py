"""Memory of a thread that works on windows that slide along rows; see ``_slide`` for the terms."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import types

from .._ahead import queue_size
from .._blocks import odd_lines
from .._vectors import F32, LANES, REGISTER
from . import _plan
from ._maps import VECTOR
from ._plan import BLOCK

__all__ = ["LEFT", "SCRATCH", "Scratch", "scratch"]

LEFT = VECTOR
"""Bytes before position 0 of a row: tiles read up to 15 lanes beyond what they need."""


class Scratch(NamedTuple):
    """Where things are in a thread's memory, in bytes; keys and values come first."""

    ring: int
    """Rows of keys that are kept."""
    sum_ring: int
    """Blocks of rows of keys whose gradients are kept."""
    key_pitch: int
    query_pitch: int
    plane_pitch: int
    deep: int
    """Floats of a position."""
    offsets: int
    vectors: int
    """Vectors of a row of the bias, of ``bias_rows``, one for each row of a window and shift."""
    bias_rows: int
    reach: int
    """Most key rows that a block of query rows sees in a plane."""
    key_row: int
    query_row: int
    plane_row: int
    s_row: int
    sum_row: int
    sum_tile: int
    """Of a tile of a block of rows of keys."""
    sum_block: int
    queries: int
    planes: int
    planes_end: int
    kept: int
    """Gradients of keys."""
    s: int
    sums: int
    bias: int
    dbias: int
    extra: int
    tokens: int
    stats: int
    rows: int
    """Positions of a row of a map."""
    lines: int
    """Most lines of memory that are asked for in a tile."""
    queue: int
    size: int


SCRATCH = types.NamedUniTuple(types.int64, len(Scratch._fields), Scratch)


@lru_cache(256)
def scratch(
    rules: tuple[tuple, tuple, tuple], dim: int, extra: int, biased: bool, backward: bool
) -> Scratch:
    """Layout of the memory for windows by the rules (arguments of ``_plan.rows``) of three axes."""
    depth, height, width = rules
    kernel_z, kernel_y, _ = (rule[1] for rule in rules)
    columns = _plan.columns(*width, backward)
    bands = columns.bands
    keys, queries = (
        _up((bands[f"{name}_end"] - bands[name]).max(), LANES) for name in ("key", "query")
    )
    slots = int(columns.tiles["slots"].max())
    vectors, offsets = int(bands["vectors"].max()), int(bands["offsets"].max())
    ring, sum_ring = _plan.rings(depth, height)
    key_pitch = odd_lines.py_func(LEFT + F32 * max(keys, _end_of_keys(columns)))
    if backward:
        queries = max(queries, _end_of_queries(columns))
    query_pitch = odd_lines.py_func(LEFT + F32 * queries)
    high = bands["low"] + bands["offsets"]
    plane_pitch = odd_lines.py_func(F32 * (int((bands["margin"] + high).max()) + queries + LANES))
    deep = _up(dim, LANES)
    bias_rows = (2 * kernel_z - 1) * (2 * kernel_y - 1) if biased else 1
    reach = min(2 * kernel_y + BLOCK, max(_plan.lengths(height[0], height[2])))
    key_row, query_row, sum_row = deep * key_pitch, deep * query_pitch, deep * VECTOR
    plane_row = kernel_z * kernel_y * offsets * plane_pitch if backward else 0
    s_row = (kernel_z * reach * slots + extra) * VECTOR
    sum_tile = BLOCK * sum_row
    sum_block = 2 * int(bands["key_tiles"].max()) * sum_tile
    # Keys have values beside them; in backward, queries have output gradients, planes of
    # probabilities those of logits' gradients, logits and additional keys their gradients.
    both = 2 if backward else 1
    # Of blocks of queries and outputs or their gradients, and of two of keys and values each.
    lines = 6 * BLOCK * LANES * -(-F32 * dim // VECTOR)
    sizes = {
        "keys": ring * 2 * key_row,
        "queries": BLOCK * both * query_row,
        "planes": BLOCK * both * plane_row,
        "kept": sum_ring * sum_block if backward else 0,
        "s": both * BLOCK * s_row,
        "sums": BLOCK * sum_row + VECTOR,
        "bias": bias_rows * vectors * VECTOR,
        "dbias": bias_rows * vectors * VECTOR if backward else 0,
        "extra": both * 2 * F32 * extra * deep + VECTOR,
        "tokens": sum_row if backward else 0,
        "stats": (1 + BLOCK) * VECTOR,
        "rows": max(keys, queries) * odd_lines.py_func(F32 * deep),
        "queue": queue_size(lines),
    }
    ends = dict(
        zip(sizes, np.cumsum([_up(size, VECTOR) for size in sizes.values()]).tolist(), strict=True)
    )
    begins = {name: end - _up(sizes[name], VECTOR) for name, end in ends.items()}
    return Scratch(
        ring,
        sum_ring,
        key_pitch,
        query_pitch,
        plane_pitch,
        deep,
        offsets,
        vectors,
        bias_rows,
        reach,
        key_row,
        query_row,
        plane_row,
        s_row,
        sum_row,
        sum_tile,
        sum_block,
        begins["queries"],
        begins["planes"],
        ends["planes"],
        begins["kept"],
        *(begins[name] for name in ("s", "sums", "bias", "dbias", "extra", "tokens", "stats")),
        begins["rows"],
        lines,
        begins["queue"],
        ends["queue"],
    )


def _end_of_keys(columns: _plan.Columns) -> int:
    """End of what tiles of queries read in a row of the keys of their band."""
    tiles = columns.tiles
    ends = tiles["key"] + -(-tiles["count"] // REGISTER) * REGISTER + tiles["slots"]
    return max(
        ends[band["tile"] :][: band["tiles"]].max() - band["key"]
        for band in columns.bands.flat
        if band["tiles"]
    )


def _end_of_queries(columns: _plan.Columns) -> int:
    """End of what tiles of keys read in a row of the queries of their band."""
    tiles = columns.key_tiles
    ends = tiles["key"] - tiles["low"] + -(-tiles["count"] // REGISTER) * REGISTER
    return max(
        ends[band["key_tile"] :][: band["key_tiles"]].max() - band["query"]
        for band in columns.bands.flat
        if band["key_tiles"]
    )


def _up(count: int, unit: int) -> int:
    return -(-int(count) // unit) * unit
