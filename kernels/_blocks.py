"""What the fused CPU kernels are built of: products, softmax and layout changes on small blocks.

Blocks are floats in scratch memory that stays in the cache, with rows padded to whole vectors.
Tensors of any supported dtype and stride are brought there and back by the functions that take
``dtype``, one of ``DTYPE_CODES`` of ``_layouts``. Addresses and strides are in bytes, as those
of ``_vectors``.
"""

import numpy as np
from numba import types

from ._elements import load_as_float, store_as
from ._jit import inline, jit, part
from ._tiles import COLUMNS, ROWS, multiply_tile
from ._transposition import load_transposed, store_transposed, transpose_8
from ._vectors import (
    LANES,
    REGISTER,
    WIDE_REGISTERS,
    broadcast,
    exp,
    fma,
    lanes_below,
    load,
    maximum,
    reduce_add,
    reduce_max,
    select,
    store,
)

__all__ = [
    "add",
    "are_whole_floats",
    "clear",
    "copy_floats",
    "copy_in",
    "copy_in_transposed",
    "copy_out",
    "copy_out_transposed",
    "even_share",
    "exponentials",
    "inner_product",
    "multiply",
    "odd_lines",
    "padded",
    "read",
    "scale_row",
    "share",
    "softmax",
    "softmax_gradient",
    "write",
]

VECTOR = 64
"""Bytes of a vector of 16 floats, and of a cache line."""


@inline
def padded(count):
    """Next multiple of 16."""
    return (count + LANES - 1) // LANES * LANES


@inline
def odd_lines(size):
    """Next odd number of cache lines, in bytes: rows of that spread over the cache's sets."""
    return ((size + VECTOR - 1) // VECTOR | 1) * VECTOR


@inline
def share(index, shares, count):
    """First and number of the items of one of several shares."""
    first = count * index // shares
    return first, count * (index + 1) // shares - first


@inline
def even_share(rows, most):
    """Rows of the next tile of at most so many, so that the last one is not a sliver."""
    tiles = (rows + most - 1) // most
    return (rows + tiles - 1) // tiles


@part
def multiply(
    rows,
    vectors,
    depth,
    a,
    a_row,
    a_step,
    b,
    b_step,
    c,
    c_row,
    scale: types.float32,
    accumulate: types.boolean,
    queue=0,
):
    """Matrix product of ``rows`` x ``depth`` by ``depth`` x ``16 vectors``.

    ``C = scale * A B``, or ``C += scale * A B`` where ``accumulate``. Element (i, k) of A is at
    ``a + i a_row + k a_step``; row k of B at ``b + k b_step`` and row i of C at ``c + i c_row``,
    both contiguous and readable to whole vectors. Tiles ask for what is in a ``queue`` of
    ``_ahead``, 0 for none.
    """
    for j in range(0, vectors, COLUMNS):
        wide = min(vectors - j, COLUMNS)
        right, i = b + 64 * j, 0
        while i < rows:
            count = even_share(rows - i, ROWS)
            left, out = a + i * a_row, c + i * c_row + 64 * j
            multiply_tile(
                count,
                wide,
                depth,
                left,
                a_row,
                a_step,
                right,
                b_step,
                out,
                c_row,
                scale,
                accumulate,
                queue,
            )
            i += count


@inline
def read(dtype, address, count):
    """The first ``count`` of 16 elements of a dtype known at run time, as floats."""
    if dtype == 0:
        return load_as_float(0, address, count)
    if dtype == 1:
        return load_as_float(1, address, count)
    return load_as_float(2, address, count)


@inline
def write(dtype, address, value, count):
    """Writes the first ``count`` lanes in a dtype known at run time."""
    if dtype == 0:
        store_as(0, address, value, count)
    elif dtype == 1:
        store_as(1, address, value, count)
    else:
        store_as(2, address, value, count)


@inline
def copy_floats(source, source_row, rows, columns, target, target_row):
    """Copies rows of floats, whole vectors of them."""
    for i in range(rows):
        for j in range(0, columns, LANES):
            store(target + i * target_row + 4 * j, load(source + i * source_row + 4 * j))


@inline
def are_whole_floats(dtype, columns):
    """Whether rows of a dtype are what ``copy_floats`` copies."""
    return dtype == 0 and columns % LANES == 0


@part
def copy_in(dtype, source, source_row, rows, columns, target, target_row):
    """Copies ``rows`` x ``columns`` elements to floats; rows are filled up with zeros to 16s."""
    if are_whole_floats(dtype, columns):
        copy_floats(source, source_row, rows, columns, target, target_row)
        return
    size = 4 if dtype == 0 else 2
    for i in range(rows):
        for j in range(0, columns, LANES):
            value = read(dtype, source + i * source_row + j * size, columns - j)
            store(target + i * target_row + 4 * j, value)


@part
def copy_out(dtype, source, source_row, rows, columns, target, target_row):
    """Copies ``rows`` x ``columns`` floats to elements."""
    if are_whole_floats(dtype, columns):
        copy_floats(source, source_row, rows, columns, target, target_row)
        return
    size = 4 if dtype == 0 else 2
    for i in range(rows):
        for j in range(0, columns, LANES):
            value = load(source + i * source_row + 4 * j)
            write(dtype, target + i * target_row + j * size, value, columns - j)


@inline
def _are_registers(dtype, rows, columns):
    """Whether blocks are what ``_transpose_floats`` transposes."""
    return not WIDE_REGISTERS and dtype == 0 and rows >= REGISTER and columns >= REGISTER


@inline
def _transpose_floats(source, source_row, rows, columns, target, target_row):
    """Transposes floats by blocks of 8 x 8, of which the last ones overlap those before them."""
    for top in range(0, rows, LANES):
        for left in range(0, columns, REGISTER):
            j = min(left, columns - REGISTER)
            for high in range(top, min(top + LANES, rows), REGISTER):
                i = min(high, rows - REGISTER)
                block, place = source + i * source_row + 4 * j, target + j * target_row + 4 * i
                transpose_8(block, source_row, place, target_row)


@inline
def _clear_ends(rows, columns, target, target_row):
    """Writes zeros to what fills rows of ``columns`` floats up to 16s, and whole rows beyond."""
    zero = broadcast(np.float32(0))
    if columns % LANES > 0:
        last = target + 4 * (columns // LANES * LANES)
        for i in range(rows):
            store(last + i * target_row, zero)
    for i in range(rows, padded(rows)):
        for j in range(0, columns, LANES):
            store(target + i * target_row + 4 * j, zero)


@part
def copy_in_transposed(dtype, source, source_row, rows, columns, target, target_row):
    """Copies ``rows`` x ``columns`` elements to ``columns`` x ``rows`` floats.

    The target has both sides filled up with zeros to 16s.
    """
    if _are_registers(dtype, rows, columns):
        _clear_ends(columns, rows, target, target_row)
        _transpose_floats(source, source_row, rows, columns, target, target_row)
        return
    size = 4 if dtype == 0 else 2
    for i in range(0, rows, LANES):
        for j in range(0, columns, LANES):
            block = source + i * source_row + j * size
            place = target + j * target_row + 4 * i
            high, wide = rows - i, columns - j
            if dtype == 0:
                load_transposed(0, block, source_row, high, wide, place, target_row)
            elif dtype == 1:
                load_transposed(1, block, source_row, high, wide, place, target_row)
            else:
                load_transposed(2, block, source_row, high, wide, place, target_row)


@part
def copy_out_transposed(dtype, source, source_row, rows, columns, target, target_row):
    """Copies ``columns`` x ``rows`` floats to ``rows`` x ``columns`` elements.

    The source has both sides readable to 16s.
    """
    if _are_registers(dtype, rows, columns):
        _transpose_floats(source, source_row, columns, rows, target, target_row)
        return
    size = 4 if dtype == 0 else 2
    for i in range(0, rows, LANES):
        for j in range(0, columns, LANES):
            block = source + j * source_row + 4 * i
            place = target + i * target_row + j * size
            high, wide = rows - i, columns - j
            if dtype == 0:
                store_transposed(0, block, source_row, place, target_row, high, wide)
            elif dtype == 1:
                store_transposed(1, block, source_row, place, target_row, high, wide)
            else:
                store_transposed(2, block, source_row, place, target_row, high, wide)


@jit
def clear(target, count):
    """Writes zeros to ``count`` floats, a multiple of 16."""
    zero = broadcast(np.float32(0))
    for i in range(0, count, LANES):
        store(target + 4 * i, zero)


@jit
def add(source, source_row, rows, columns, target, target_row):
    """Adds a block of floats to another; columns are a multiple of 16."""
    for i in range(rows):
        for j in range(0, columns, LANES):
            place = target + i * target_row + 4 * j
            store(place, load(place) + load(source + i * source_row + 4 * j))


@part
def softmax(x, columns) -> types.UniTuple(types.float32, 2):
    """Turns a row of logits into unnormalised probabilities, with zeros beyond ``columns``.

    Returns:
        The row's maximum, which the exponents are relative to, and the sum of the exponentials. A
        row of -inf gives zeros, with sum 0.
    """
    whole = columns // LANES * LANES
    low = broadcast(np.float32(-np.inf))
    top = low
    for j in range(0, whole, LANES):
        top = maximum(top, load(x + 4 * j))
    rest = lanes_below(columns - whole)
    if whole < columns:
        top = maximum(top, select(rest, load(x + 4 * whole), low))
    largest = reduce_max(top)
    if largest == np.float32(-np.inf):
        clear(x, padded(columns))
        return largest, np.float32(0)
    shift = broadcast(largest)
    total = broadcast(np.float32(0))
    for j in range(0, whole, LANES):
        value = exp(load(x + 4 * j) - shift)
        total = total + value
        store(x + 4 * j, value)
    if whole < columns:
        value = select(rest, exp(load(x + 4 * whole) - shift), broadcast(np.float32(0)))
        total = total + value
        store(x + 4 * whole, value)
    return largest, reduce_add(total)


@part
def exponentials(x, columns, shift: types.float32):
    """Turns a row of logits into ``exp(x - shift)``, with zeros beyond ``columns``."""
    offset = broadcast(shift)
    zero = broadcast(np.float32(0))
    for j in range(0, columns, LANES):
        value = exp(load(x + 4 * j) - offset)
        store(x + 4 * j, select(lanes_below(columns - j), value, zero))


@jit
def scale_row(x, columns, factor):
    """Multiplies a row of floats, a multiple of 16 of them, by a number."""
    factors = broadcast(np.float32(factor))
    for j in range(0, columns, LANES):
        store(x + 4 * j, load(x + 4 * j) * factors)


@jit
def inner_product(x, y, columns):
    """Inner product of two rows of floats, a multiple of 16 of them."""
    total = broadcast(np.float32(0))
    for j in range(0, columns, LANES):
        total = fma(load(x + 4 * j), load(y + 4 * j), total)
    return reduce_add(total)


@jit
def softmax_gradient(p, dp, columns, delta):
    """Turns ``dp`` into the gradient ``p * (dp - delta)`` of a row's logits."""
    shift = broadcast(np.float32(delta))
    for j in range(0, columns, LANES):
        store(dp + 4 * j, load(p + 4 * j) * (load(dp + 4 * j) - shift))
