"""Rows of tensors as floats, and their inner products, for the kernels of pooling."""

from .._blocks import clear, copy_in, padded
from .._jit import inline, integers, part
from .._reductions import TILE, inner_products_tile
from .._vectors import F32, LANES

__all__ = ["FLOAT", "copy_tiles", "find_rows", "inner_products", "in_whole_tiles", "tiled"]

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""

LAYOUT = integers(4)


def in_whole_tiles(count: int) -> int:
    """Next multiple of ``TILE``."""
    return -(-count // TILE) * TILE


@inline
def tiled(count):
    """``in_whole_tiles`` for kernels."""
    return (count + TILE - 1) // TILE * TILE


@part
def find_rows(layout: LAYOUT, item, first, number, columns, target) -> integers(3):
    """Rows of floats, where they are or copied: their address, stride, and number in whole tiles.

    Those that are not copied need not be whole tiles.
    """
    dtype, address, batch, row = layout
    source = address + item * batch + first * row
    if dtype == FLOAT and columns % LANES == 0 and number >= TILE:
        return source, row, number
    target_row = padded(columns) * F32
    copy_in(dtype, source, row, number, columns, target, target_row)
    clear(target + number * target_row, (tiled(number) - number) * padded(columns))
    return target, target_row, tiled(number)


@part
def copy_tiles(layout: LAYOUT, item, start, count, columns, target):
    """Copies rows to floats in whole tiles."""
    dtype, address, batch, row = layout
    target_row = padded(columns) * F32
    copy_in(dtype, address + item * batch + start * row, row, count, columns, target, target_row)
    clear(target + count * target_row, (tiled(count) - count) * padded(columns))


@part
def inner_products(rows, columns, depth, a, a_row, b, b_row, c, c_row):
    """``C = A B^T`` of at least 4 rows each; the last tiles may overlap those before them.

    Rows of B, which may come from main memory, are read once.
    """
    for j in range(0, columns, TILE):
        left = min(j, columns - TILE)
        for i in range(0, rows, TILE):
            top = min(i, rows - TILE)
            inner_products_tile(
                depth // LANES,
                a + top * a_row,
                a_row,
                b + left * b_row,
                b_row,
                c + top * c_row + left * F32,
                c_row,
            )
