"""Register tiles of matrix products; see ``_vectors`` for the terms."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import _llvm as llvm
from ._ahead import emit_take
from ._llvm import WIDE_REGISTERS

__all__ = [
    "COLUMNS",
    "ROWS",
    "multiply_tile",
]

ROWS, COLUMNS = (8, 2) if WIDE_REGISTERS else (6, 1)
"""Most rows and vectors of columns of a register tile of ``multiply_tile``."""
TAKEN = 8
"""Lines that are asked for with a tile."""


def _emit_tile(builder, rows, vectors, operands, accumulate):
    """Emits one register tile of a product; ends in a block of its own."""
    depth, a, a_row, a_step, b, b_step, c, c_row, scale = operands
    integer = depth.type
    zero, one = ir.Constant(integer, 0), ir.Constant(integer, 1)
    entry = builder.block
    loop = builder.append_basic_block("depth")
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", depth, zero), loop, done)

    builder.position_at_end(loop)
    k, left, right = (builder.phi(integer) for _ in range(3))
    sums = [builder.phi(llvm.VECTOR) for _ in range(rows * vectors)]
    columns = [
        llvm.load(builder, builder.add(right, ir.Constant(integer, 64 * j)), llvm.VECTOR, 4)
        for j in range(vectors)
    ]
    updated = []
    for i in range(rows):
        value = llvm.splat(
            builder, llvm.load(builder, llvm.offset(builder, left, a_row, i), llvm.FLOAT, 4)
        )
        updated += [
            llvm.fma(builder, value, column, sums[i * vectors + j])
            for j, column in enumerate(columns)
        ]
    following = builder.add(k, one)
    for phi, start, step in (
        (k, zero, following),
        (left, a, builder.add(left, a_step)),
        (right, b, builder.add(right, b_step)),
        *((phi, llvm.constant(0.0), value) for phi, value in zip(sums, updated, strict=True)),
    ):
        phi.add_incoming(start, entry)
        phi.add_incoming(step, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)

    builder.position_at_end(done)
    totals = []
    for value in updated:
        total = builder.phi(llvm.VECTOR)
        total.add_incoming(llvm.constant(0.0), entry)
        total.add_incoming(value, loop)
        totals.append(total)
    factor = llvm.splat(builder, scale)
    places = [
        builder.add(llvm.offset(builder, c, c_row, i), ir.Constant(integer, 64 * j))
        for i in range(rows)
        for j in range(vectors)
    ]
    with builder.if_else(accumulate) as (then, otherwise):
        with then:
            for total, place in zip(totals, places, strict=True):
                before = llvm.load(builder, place, llvm.VECTOR, 4)
                llvm.store(builder, llvm.fma(builder, total, factor, before), place, 4)
        with otherwise:
            for total, place in zip(totals, places, strict=True):
                llvm.store(builder, builder.fmul(total, factor), place, 4)


@intrinsic
def multiply_tile(
    typingctx, rows, vectors, depth, a, a_row, a_step, b, b_step, c, c_row, scale, accumulate, queue
):
    """A register tile of a matrix product: at most ``ROWS`` rows by ``COLUMNS`` vectors."""

    def codegen(context, builder, signature, args):
        rows, vectors, *operands, accumulate, queue = args
        two = ir.Constant(rows.type, 2)
        end = builder.append_basic_block("end")
        switch = builder.switch(builder.add(builder.mul(rows, two), vectors), end)
        for m in range(1, ROWS + 1):
            for n in range(1, COLUMNS + 1):
                block = builder.append_basic_block(f"tile{m}x{n}")
                switch.add_case(ir.Constant(rows.type, 2 * m + n), block)
                builder.position_at_end(block)
                _emit_tile(builder, m, n, operands, accumulate)
                builder.branch(end)
        builder.position_at_end(end)
        with builder.if_then(builder.icmp_signed("!=", queue, llvm.number(0))):
            emit_take(builder, queue, TAKEN)
        return context.get_dummy_value()

    integers = [types.int64] * 10
    return types.void(*integers, types.float32, types.boolean, types.int64), codegen
