"""Sums and inner products of rows in registers, for Numba kernels; for terms see ``_vectors``."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import _llvm as llvm
from ._vectors import F32, LANES, REGISTER, WIDE_REGISTERS

__all__ = ["TILE", "counted_loop", "inner_products_tile", "put_sums_of_lanes"]

TILE = 4
"""Rows of either factor of ``inner_products_tile``."""
HIGH = TILE if WIDE_REGISTERS else 2
"""Rows of the first factor that registers have room for."""


def counted_loop(builder, count, states, body):
    """Emits ``for i in range(count): states = body(i, states)``; gives the last states."""
    entry = builder.block
    loop = builder.append_basic_block("loop")
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", count, llvm.number(0)), loop, done)

    builder.position_at_end(loop)
    index = builder.phi(llvm.I64)
    inside = [builder.phi(state.type) for state in states]
    updated = body(index, inside)
    end = builder.block
    following = builder.add(index, llvm.number(1))
    starts, nexts = (llvm.number(0), *states), (following, *updated)
    for phi, start, value in zip((index, *inside), starts, nexts, strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, end)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

    builder.position_at_end(done)
    results = []
    for start, value in zip(states, updated, strict=True):
        phi = builder.phi(start.type)
        phi.add_incoming(start, entry)
        phi.add_incoming(value, end)
        results.append(phi)
    return results


def _sums_of_lanes(builder, rows):
    """Sums of as many vectors as these have lanes: pairs are folded into one, half onto half."""
    lanes = len(rows)
    kind = ir.VectorType(llvm.I32, lanes)
    while len(rows) > 1:
        half = len(rows) // 2
        upper = [lane // half % 2 * lanes for lane in range(lanes)]
        low = [lane - (half if u else 0) + u for lane, u in enumerate(upper)]
        high = [lane + (0 if u else half) + u for lane, u in enumerate(upper)]
        rows = [
            builder.fadd(
                builder.shuffle_vector(x, y, ir.Constant(kind, low)),
                builder.shuffle_vector(x, y, ir.Constant(kind, high)),
            )
            for x, y in zip(rows[:half], rows[half:], strict=True)
        ]
    return rows[0]


@intrinsic
def put_sums_of_lanes(typingctx, target, source):
    """Writes the sums of the lanes of registers in a row, as many as each has lanes."""

    def codegen(context, builder, signature, args):
        target, source = args
        step = llvm.number(REGISTER * F32)
        rows = [
            llvm.load(builder, llvm.offset(builder, source, step, i), llvm.FLOATS, F32)
            for i in range(REGISTER)
        ]
        llvm.store(builder, _sums_of_lanes(builder, rows), target, F32)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def inner_products_tile(typingctx, vectors, a, a_row, b, b_row, c, c_row):
    """Writes the 4 x 4 inner products of rows of A with rows of B, of whole vectors of floats."""

    def codegen(context, builder, signature, args):
        vectors, a, a_row, b, b_row, c, c_row = args

        sums = []
        for top in range(0, TILE, HIGH):
            start = llvm.offset(builder, a, a_row, top)
            sums += _inner_products(builder, vectors, start, a_row, b, b_row)
        sums = _sums_of_lanes(builder, sums)
        for i in range(TILE):
            lanes = [TILE * i + j for j in range(TILE)]
            lanes = ir.Constant(ir.VectorType(llvm.I32, TILE), lanes)
            products = builder.shuffle_vector(sums, sums, lanes)
            llvm.store(builder, products, llvm.offset(builder, c, c_row, i), 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


def _inner_products(builder, vectors, a, a_row, b, b_row):
    """Inner products, lane by lane, of ``HIGH`` rows of A with ``TILE`` rows of B."""
    zeros = ir.Constant(llvm.FLOATS, [0.0] * REGISTER)

    def body(index, sums):
        shift = builder.mul(index, llvm.number(REGISTER * F32))
        left, right = (
            [
                llvm.load(
                    builder, builder.add(llvm.offset(builder, x, row, i), shift), llvm.FLOATS, 4
                )
                for i in range(rows)
            ]
            for x, row, rows in ((a, a_row, HIGH), (b, b_row, TILE))
        )
        pairs = ((x, y) for x in left for y in right)
        return [llvm.fma(builder, x, y, total) for (x, y), total in zip(pairs, sums, strict=True)]

    steps = builder.mul(vectors, llvm.number(LANES // REGISTER))
    sums = counted_loop(builder, steps, [zeros] * (HIGH * TILE), body)
    if REGISTER == LANES:
        return sums
    all_lanes = ir.Constant(llvm.INTS, list(range(LANES)))
    return [builder.shuffle_vector(x, zeros, all_lanes) for x in sums]
