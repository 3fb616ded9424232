"""Vector code of sliding windows: sums of products of what lies at one offset from 16 lanes."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import _llvm as llvm
from .._ahead import emit_take
from .._jit import part
from .._vectors import F32, REGISTER, WIDE_REGISTERS, mask

__all__ = ["UNIFORM", "lanes_of", "multiply_tiles"]

ALL = (1 << REGISTER) - 1
# For each number of rows of a register tile, the most columns. The sums, and a row and a column of
# factors, about fit the registers.
COLUMNS = (8, 8, 5, 4) if WIDE_REGISTERS else (8, 4)
TAKEN = 2
"""Lines that are asked for with a tile, which takes a few dozen cycles at least."""

UNIFORM = 3
"""Number of edges that stands for one float in all lanes."""


@intrinsic
def lanes_of(typingctx, bits):
    """Mask by its bits, the lowest for the first lane."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], llvm.I16), llvm.MASK)

    return mask(types.int64), codegen


def _join(targets, sources, block):
    for target, source in zip(targets, sources, strict=True):
        target.add_incoming(source, block)


def _opaque(builder, value):
    """The same value, which LLVM is not to see through: else it keeps each address of a loop, not
    what they are made of, and there are more of those than registers."""
    return builder.asm(
        ir.FunctionType(llvm.I64, [llvm.I64]), "", "=r,0", [value], side_effect=False
    )


def _emit(builder, rows, columns, edges, operands):
    """Emits the code of register tiles of one size; ends in a block of its own."""
    outer, inner, *operands = operands
    (a_table, a_shift, a_row, a_step, b_table, b_shift, b_column, b_step) = operands[:8]
    replaced, (c, c_row, c_column, accumulate) = operands[8:12], operands[12:16]
    tiles, b_next, b_move, c_next, queue = operands[16:]
    size, uniform = rows * columns, edges == UNIFORM
    edges = 0 if uniform else edges
    shifts = replaced[::2][:edges]
    masks = [llvm.chosen_lanes(builder, bits, REGISTER) for bits in replaced[1::2][:edges]]

    entry = builder.block
    again, before, start, outside, inside, behind, done, end = (
        builder.append_basic_block(name)
        for name in ("again", "before", "start", "outside", "inside", "behind", "done", "end")
    )
    builder.branch(again)

    builder.position_at_end(again)
    t, own_table, own_shift, own_c = (builder.phi(llvm.I64) for _ in range(4))
    places = [
        builder.add(
            llvm.offset(builder, own_c, c_row, n), llvm.offset(builder, llvm.number(0), c_column, m)
        )
        for n in range(rows)
        for m in range(columns)
    ]
    builder.cbranch(builder.icmp_signed("!=", accumulate, llvm.number(0)), before, start)

    builder.position_at_end(before)
    present = [llvm.load(builder, place, llvm.FLOATS, 4) for place in places]
    builder.branch(start)

    builder.position_at_end(start)
    first = [builder.phi(llvm.FLOATS) for _ in range(size)]
    _join(first, [ir.Constant(llvm.FLOATS, [0.0] * REGISTER)] * size, again)
    _join(first, present, before)
    builder.branch(outside)

    builder.position_at_end(outside)
    i, *sums = builder.phi(llvm.I64), *(builder.phi(llvm.FLOATS) for _ in range(size))
    entries = builder.mul(i, llvm.number(8))
    a0, b0 = (
        builder.add(llvm.load(builder, builder.add(table, entries), llvm.I64, 8), shift)
        for table, shift in ((a_table, a_shift), (own_table, own_shift))
    )
    builder.branch(inside)

    builder.position_at_end(inside)
    j, a, b = (builder.phi(llvm.I64) for _ in range(3))
    running = [builder.phi(llvm.FLOATS) for _ in range(size)]
    at_a, at_b, *bases = (
        _opaque(builder, place) for place in (a, b, *(builder.add(b, shift) for shift in shifts))
    )
    left = [
        llvm.load(builder, llvm.offset(builder, at_a, a_row, n), llvm.FLOATS, 4)
        for n in range(rows)
    ]
    updated = list(running)
    for m in range(columns):
        place = llvm.offset(builder, at_b, b_column, m)
        if uniform:
            right = llvm.splat(builder, llvm.load(builder, place, llvm.FLOAT, 4), REGISTER)
        else:
            right = llvm.load(builder, place, llvm.FLOATS, 4)
        for chosen, base in zip(masks, bases, strict=True):
            value = llvm.load(builder, llvm.offset(builder, base, b_column, m), llvm.FLOAT, 4)
            right = llvm.select(builder, chosen, llvm.splat(builder, value, REGISTER), right)
        for n in range(rows):
            at = n * columns + m
            updated[at] = llvm.fma(builder, left[n], right, updated[at])
    next_j = builder.add(j, llvm.number(1))
    _join((j, a, b, *running), (llvm.number(0), a0, b0, *sums), outside)
    steps = next_j, builder.add(a, a_step), builder.add(b, b_step)
    _join((j, a, b, *running), (*steps, *updated), inside)
    builder.cbranch(builder.icmp_signed("<", next_j, inner), inside, behind)

    builder.position_at_end(behind)
    next_i = builder.add(i, llvm.number(1))
    _join((i, *sums), (llvm.number(0), *first), start)
    _join((i, *sums), (next_i, *updated), behind)
    builder.cbranch(builder.icmp_signed("<", next_i, outer), outside, done)

    builder.position_at_end(done)
    for value, place in zip(updated, places, strict=True):
        llvm.store(builder, value, place, 4)
    emit_take(builder, queue, TAKEN)
    done = builder.block
    values = t, own_table, own_shift, own_c
    _join(values, (llvm.number(0), b_table, b_shift, c), entry)
    following = [
        builder.add(value, step)
        for value, step in zip(values, (llvm.number(1), b_next, b_move, c_next), strict=True)
    ]
    _join(values, following, done)
    builder.cbranch(builder.icmp_signed("<", following[0], tiles), again, end)
    builder.position_at_end(end)


_ARGUMENTS = [types.int64] * 26


@intrinsic
def _tiles(
    typingctx, rows, columns, edges, outer, inner, a_table, a_shift, a_row, a_step,
    b_table, b_shift, b_column, b_step, shift0, mask0, shift1, mask1,
    c, c_row, c_column, accumulate, tiles, b_next, b_move, c_next, queue,
):  # fmt: skip
    """Tiles of one size: from one to the next B is ``b_next`` bytes further in the table and
    ``b_move`` bytes in memory, and C is ``c_next`` bytes further."""

    def codegen(context, builder, signature, args):
        rows, columns, edges, *operands = args
        end = builder.append_basic_block("end")
        sizes = builder.add(
            builder.mul(rows, llvm.number(64)), builder.mul(columns, llvm.number(4))
        )
        switch = builder.switch(builder.add(sizes, edges), end)
        for n, most in enumerate(COLUMNS, 1):
            for m in range(1, most + 1):
                for e in range(UNIFORM + 1):
                    block = builder.append_basic_block(f"tile{n}x{m}_{e}")
                    switch.add_case(llvm.number(64 * n + 4 * m + e), block)
                    builder.position_at_end(block)
                    _emit(builder, n, m, e, operands)
                    builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*_ARGUMENTS), codegen


@part
def multiply_tiles(
    lanes, rows, columns, edges, outer, inner, a_table, a_shift, a_row, a_step,
    b_table, b_shift, b_column, b_step, shift0, mask0, shift1, mask1,
    c, c_row, c_column, accumulate, products, b_next, c_next, queue,
):  # fmt: skip
    """Sums over i and j, ``C[n, m] = sum A[i, n, j] * B[i, m, j]``, lane by lane.

    Vectors of A are at ``a_table[i] + a_shift + n a_row + j a_step``, those of B at ``b_table[i] +
    b_shift + m b_column + j b_step``, with addresses in tables; i is below ``outer`` and j below
    ``inner``, both at least 1. In B, the lanes of the first ``edges`` masks have in common the
    float that lies ``shift`` bytes behind the vector; with ``UNIFORM`` edges all lanes have that at
    the vector's place. ``accumulate`` adds to C.

    There are as many ``products`` with the same A, at least 1: from one to the next B's table is
    ``b_next`` and C ``c_next`` bytes further. Of the lanes only the first ``lanes`` are wanted:
    registers of none of them are left out. Each tile asks for lines of a ``queue`` of ``_ahead``.
    """
    n = 0
    while n < rows:
        shares = (rows - n + len(COLUMNS) - 1) // len(COLUMNS)
        high = (rows - n + shares - 1) // shares
        shares = (columns + COLUMNS[high - 1] - 1) // COLUMNS[high - 1]
        wide = (columns + shares - 1) // shares
        for lane in range(0, lanes, REGISTER):
            kind, at, at_b = edges, F32 * lane, 0 if edges == UNIFORM else F32 * lane
            lanes0, lanes1 = mask0 >> lane & ALL, mask1 >> lane & ALL
            behind0, behind1 = shift0 - at, shift1 - at
            # Lanes without an edge need no choice.
            if kind == 2 and lanes1 == 0:
                kind = 1
            if kind == 2 and lanes0 == 0:
                kind, lanes0, behind0 = 1, lanes1, behind1
            if kind == 1 and lanes0 == 0:
                kind = 0
            m = 0
            while m < columns:
                # To go on with another tile of the same size costs much less than to begin anew.
                width = min(wide, columns - m)
                groups = (columns - m) // width if products == 1 else 1
                table, move, further = b_next, 0, c_next
                if products == 1:
                    table, move, further = 0, width * b_column, width * c_column
                _tiles(
                    high, width, kind, outer, inner,
                    a_table, a_shift + n * a_row + at, a_row, a_step,
                    b_table, b_shift + m * b_column + at_b, b_column, b_step,
                    behind0, lanes0, behind1, lanes1,
                    c + n * c_row + m * c_column + at, c_row, c_column, accumulate,
                    groups * products, table, move, further, queue,
                )  # fmt: skip
                m += groups * width
        n += high
