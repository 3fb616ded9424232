"""What passes over tokens and biases are both made of: matrices, their products and sums."""

import math
from typing import NamedTuple

import numpy as np
import torch

from .._blocks import multiply, write
from .._jit import inline, jit
from .._layouts import DTYPE_CODES
from .._threads import parallel_for
from .._vectors import LANES, broadcast, get_int, load_lanes

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
ONE = np.float32(1)
ENTRY = 96
"""Bytes of what ``_add_up`` knows of a result."""
ROWS_OF_SUMS = 512
"""Fewest rows of sums that are worth a thread."""


def empty_floats(*shape):
    return torch.empty(shape, dtype=torch.float32, device="cpu")


class Sums(NamedTuple):
    """Sums in scratch memory that are to be added up, and where they go.

    The result has rows in three dimensions, and contiguous ones; the sums have theirs where they
    like.
    """

    parts: int
    by_part: int
    """Bytes from one sum to the next, which ``strides`` are within."""
    rows: tuple[int, int, int]
    strides: tuple[int, int, int]
    columns: int


def add_up(sources, sums, likes):
    """Adds up sums, those in ``likes`` of another tensor's shape and dtype, each in order.

    Args:
        sources: Addresses.
        sums: What is there.
        likes: Tensors.

    Returns:
        A tensor of each.
    """
    results = [x.new_empty(x.shape) for x in likes]
    table, tasks = [], 0
    for source, each, out in zip(sources, sums, results, strict=True):
        target = DTYPE_CODES[out.dtype], out.data_ptr()
        tasks += math.prod(each.rows)
        table += (tasks, source, *each[:2], *each.rows[1:], *each.strides, each.columns, *target)
    if tasks > 0:
        memory = torch.tensor(table, dtype=torch.int64, device="cpu")
        parallel_for(_add_up, tasks, memory.data_ptr(), min_chunk=ROWS_OF_SUMS)
    return results


@jit
def _add_up(begin, end, table):
    entry, start = table, 0
    for task in range(begin, end):
        while task >= get_int(entry):
            start = get_int(entry)
            entry += ENTRY
        source, parts, by_part = get_int(entry + 8), get_int(entry + 16), get_int(entry + 24)
        major, minor = divmod(task - start, get_int(entry + 40))
        major, middle = divmod(major, get_int(entry + 32))
        source += major * get_int(entry + 48) + middle * get_int(entry + 56)
        source += minor * get_int(entry + 64)
        columns, dtype = get_int(entry + 72), get_int(entry + 80)
        size = 4 if dtype == FLOAT else 2
        target = get_int(entry + 88) + (task - start) * columns * size
        for j in range(0, columns, LANES):
            total = broadcast(np.float32(0))
            for place in range(source + 4 * j, source + 4 * j + parts * by_part, by_part):
                total = total + load_lanes(place, columns - j)
            write(dtype, target + j * size, total, columns - j)


@inline
def product(rows, vectors, depth, a, b, c, scale, accumulate):
    """``multiply`` with (address, row, step) of A, and (address, row) of B and of C."""
    multiply(rows, vectors, depth, a[0], a[1], a[2], b[0], b[1], c[0], c[1], scale, accumulate)
