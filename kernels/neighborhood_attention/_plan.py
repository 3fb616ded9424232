"""How fused CPU code walks over a map: whom each row and each tile of 16 positions sees.

Plain NumPy on the lengths of axes; nothing here looks at values, and all of it is remembered. With
dilation, positions that agree modulo it are an axis of their own. Such axes have at most two
lengths, ``length // dilation + 1`` and ``length // dilation``: index 0 and 1 of what is returned.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

LANES = 16
BLOCK = 4
"""Rows of queries (or keys) that are worked on together."""
BAND = 256
"""Most positions of the last axis that are worked on together."""

BANDS = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("first", "end"),  # positions whose results the band gives
            *("query", "query_end"),  # queries worked on: those, and in backward who sees them
            *("key", "key_end"),  # keys that these see
            *("tile", "tiles"),  # first tile, and number of tiles, of queries
            *("key_tile", "key_tiles"),  # of keys
            *("vector", "vectors"),  # rows of `lanes`
            *("low", "offsets"),  # least offset from query to key, and how many there are
            "margin",  # positions that offsets lead out of the band to the left, in whole tiles
        )
    ]
)
TILES = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("query", "count"),  # first query, and number of queries
            "key",  # key of the first lane at slot 0; each lane and each slot is one further
            "slots",
            *("edges", "shift0", "mask0", "shift1", "mask1"),  # see `_tile`
            "masked",  # whether some slot of some lane does not count
            "vector",  # row of `lanes` of slot 0
            *("low", "high"),  # offsets that some key tile reads
            "regular",  # mask of the lanes that `key` is true for
        )
    ]
)
KEY_TILES = np.dtype([(name, np.int64) for name in ("key", "count", "low", "high")])


class Rows(NamedTuple):
    """Windows along an axis of rows, for both lengths of axes: each array is (2, length)."""

    start: np.ndarray
    end: np.ndarray
    query: np.ndarray
    """First query that sees a key."""
    query_end: np.ndarray


class Columns(NamedTuple):
    """Windows along the last axis, for both lengths of axes."""

    bands: np.ndarray
    tiles: np.ndarray
    key_tiles: np.ndarray
    lanes: np.ndarray
    """Index of the bias of each slot and lane, -1 where the slot does not count."""


def windows(length: int, kernel: int, stride: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """First key, and end of the keys, that each position of an axis sees."""
    place = np.arange(length)
    first = place // stride * stride
    if causal:
        leader = np.minimum(first + stride - 1, length - 1)
        return np.maximum(leader - kernel + 1, 0), place + 1
    leader = np.minimum(first + stride // 2, length - 1)
    start = np.minimum(np.maximum(leader - kernel // 2, 0), length - kernel)
    return start, start + kernel


def lengths(length: int, dilation: int) -> tuple[int, int]:
    """Both lengths of the axes of one dilation; 0 where there is no such axis."""
    return length // dilation + 1 if length % dilation else 0, length // dilation


def _seen_by(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First query, and end of the queries, that see each position."""
    place = np.arange(len(start))
    return np.searchsorted(end, place, "right"), np.searchsorted(start, place, "right")


@lru_cache(256)
def rows(length: int, kernel: int, dilation: int, stride: int, causal: bool) -> Rows:
    tables = np.zeros((4, 2, max(lengths(length, dilation))), np.int64)
    for variant, size in enumerate(lengths(length, dilation)):
        start, end = windows(size, kernel, stride, causal)
        tables[:, variant, :size] = start, end, *_seen_by(start, end)
    return Rows(*tables)


@lru_cache(256)
def columns(
    length: int, kernel: int, dilation: int, stride: int, causal: bool, backward: bool
) -> Columns:
    count = -(-max(lengths(length, dilation)) // BAND)
    bands = np.zeros((2, count), BANDS)
    tiles: list[tuple] = []
    key_tiles: list[tuple] = []
    lanes: list[np.ndarray] = []
    for variant, size in enumerate(lengths(length, dilation)):
        start, end = windows(size, kernel, stride, causal)
        query, query_end = _seen_by(start, end)
        for i in range(count if size else 0):
            a, b = i * size // count, (i + 1) * size // count
            band = bands[variant, i]
            qa, qb = (query[a], query_end[b - 1]) if backward else (a, b)
            # (first key, number, least and largest offset from a query to a key)
            here = [
                (
                    k,
                    min(b - k, LANES),
                    min(j + 1 - query_end[j] for j in range(k, min(b, k + LANES))),
                    max(j - query[j] for j in range(k, min(b, k + LANES))),
                )
                for k in range(a, b, LANES)
            ]
            low, high = min(t[2] for t in here), max(t[3] for t in here)
            band["first"], band["end"], band["query"], band["query_end"] = a, b, qa, qb
            band["key"], band["key_end"] = start[qa], end[qb - 1]
            band["tile"], band["key_tile"] = len(tiles), len(key_tiles)
            band["vector"] = len(lanes)
            band["low"], band["offsets"] = low, high - low + 1
            band["margin"] = -(-(a - qa - low) // LANES) * LANES
            for x in range(qa, qb, LANES):
                tile, table = _tile(x, min(qb - x, LANES), start, end, kernel)
                # A key tile reads the queries that are an offset before its 16 lanes.
                readers = [t for t in here if t[0] - t[3] < x + LANES and x < t[0] + LANES - t[2]]
                reads = (
                    min((t[2] for t in readers), default=0),
                    max((t[3] for t in readers), default=-1),
                )
                tiles.append((*tile[:-1], len(lanes), *reads, tile[-1]))
                lanes.extend(table)
            key_tiles += here
            band["tiles"] = len(tiles) - band["tile"]
            band["key_tiles"] = len(key_tiles) - band["key_tile"]
            band["vectors"] = len(lanes) - band["vector"]
    return Columns(
        bands,
        np.array(tiles, TILES),
        np.array(key_tiles, KEY_TILES),
        np.array(lanes, np.int32),
    )


def _tile(
    x: int, count: int, start: np.ndarray, end: np.ndarray, kernel: int
) -> tuple[tuple, np.ndarray]:
    """Which keys the slots of a tile of queries hold.

    Key ``key + lane + slot`` where windows move with their queries. Those that a border stops are
    a run of lanes at either end of the tile, which all have the same key ``key + shift + slot``
    instead. Where neither is so, slots are as many as hold all windows, and a mask cuts them.
    """
    begin, stop = start[x : x + count], end[x : x + count]
    lane = np.arange(count)
    left = int(np.argmax(begin != begin[0])) - 1 if begin[0] != begin[-1] else count - 1
    right = count - int(np.argmax(begin[::-1] != begin[-1])) + 1 if left < count - 1 else count
    relative = begin - lane
    if (relative[left:right] == relative[left]).all():
        key, slots = int(relative[left]), int((stop - begin).max())
        masks = [
            (int(begin[at]) - key, ((1 << to) - 1) & ~((1 << at) - 1))
            for at, to in ((0, left), (right, count))
            if at < to
        ]
        seen = np.where((lane < left) | (lane >= right), begin, lane + key)
    else:
        key, masks = int(relative.min()), []
        slots = int((stop - lane).max()) - key
        seen = lane + key
    seen = seen[None] + np.arange(slots)[:, None]
    counts = (begin <= seen) & (seen < stop)
    table = np.zeros((slots, LANES), np.int32)
    table[:, :count] = np.where(counts, seen - (x + lane) + kernel - 1, -1)
    regular = (1 << count) - 1
    for _, mask in masks:
        regular &= ~mask
    (shift0, mask0), (shift1, mask1) = (masks + [(0, 0)] * 2)[:2]
    edges = (len(masks), shift0, mask0, shift1, mask1)
    return (x, count, key, slots, *edges, not counts.all(), regular), table


def blocks(length: int) -> list[tuple[int, int]]:
    """Even shares of at most ``BLOCK`` rows; the kernels cut rows alike."""
    count = -(-length // BLOCK)
    return [(i * length // count, (i + 1) * length // count) for i in range(count)]


def count_blocks(depth: tuple, height: tuple) -> int:
    """Blocks of rows of the smallest group; see ``rings``."""
    deep, high = (length // dilation for length, _, dilation, *_ in (depth, height))
    return max(deep, 1) * max(-(-high // BLOCK), 1)


@lru_cache(256)
def rings(depth: tuple, height: tuple) -> tuple[int, int]:
    """Rows of keys, and blocks of their gradients, to be kept when blocks are worked on in turn.

    ``depth`` and ``height`` are the arguments of ``rows`` for the two axes of rows.
    """
    z, y = rows(*depth), rows(*height)
    keys = sums = 1
    for i, deep in enumerate(lengths(depth[0], depth[2])):
        for j, high in enumerate(lengths(height[0], height[2])):
            parts = blocks(high)
            block_of = [n for n, (b, e) in enumerate(parts) for _ in range(b, e)]
            # For each block of keys, the end of the queries that see it.
            seen = [
                (z.query_end[i, a] - 1) * high + y.query_end[j, e - 1]
                for a in range(deep)
                for _, e in parts
            ]
            read = reached = complete = 0
            for a, (b, e) in product(range(deep), parts):
                read = max(read, (z.end[i, a] - 1) * high + y.end[j, e - 1])
                keys = max(keys, read - (z.start[i, a] * high + y.start[j, b]))
                last = (z.end[i, a] - 1) * len(parts) + block_of[y.end[j, e - 1] - 1]
                reached = max(reached, last + 1)
                sums = max(sums, reached - complete)
                while complete < len(seen) and seen[complete] <= a * high + e:
                    complete += 1
    return int(keys), int(sums)
