"""Sums and inner products of rows in registers, for Numba kernels; see ``_simd`` for the terms."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._simd import (
    _FLOAT,
    _I32,
    _INTS,
    _VECTOR,
    F32,
    LANES,
    WIDE_REGISTERS,
    _fma,
    _load,
    _offset,
    _store,
    vector,
)

__all__ = ["TILE", "counted_loop", "inner_products_tile", "sums_of_lanes"]

TILE = 4
"""Rows of either factor of ``inner_products_tile``."""
HIGH, SHORT = (TILE, LANES) if WIDE_REGISTERS else (2, 8)
"""Rows of the first factor, and lanes, that registers have room for."""

_I64 = ir.IntType(64)


def _number(value):
    return ir.Constant(_I64, value)


def counted_loop(builder, count, states, body):
    """Emits ``for i in range(count): states = body(i, states)``; gives the last states."""
    entry = builder.block
    loop = builder.append_basic_block("loop")
    done = builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", count, _number(0)), loop, done)

    builder.position_at_end(loop)
    index = builder.phi(_I64)
    inside = [builder.phi(state.type) for state in states]
    updated = body(index, inside)
    end = builder.block
    following = builder.add(index, _number(1))
    starts, nexts = (_number(0), *states), (following, *updated)
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
    """The vector of the sums of 16 vectors: pairs of them are folded into one, half onto half."""
    while len(rows) > 1:
        half = len(rows) // 2
        upper = [lane // half % 2 * LANES for lane in range(LANES)]
        low = [lane - (half if u else 0) + u for lane, u in enumerate(upper)]
        high = [lane + (0 if u else half) + u for lane, u in enumerate(upper)]
        rows = [
            builder.fadd(
                builder.shuffle_vector(x, y, ir.Constant(_INTS, low)),
                builder.shuffle_vector(x, y, ir.Constant(_INTS, high)),
            )
            for x, y in zip(rows[:half], rows[half:], strict=True)
        ]
    return rows[0]


@intrinsic
def sums_of_lanes(typingctx, source, row):
    """The sums of the lanes of 16 vectors, ``row`` bytes apart."""

    def codegen(context, builder, signature, args):
        source, row = args
        vectors = [
            _load(builder, _offset(builder, source, row, i), _VECTOR, 4) for i in range(LANES)
        ]
        return _sums_of_lanes(builder, vectors)

    return vector(types.int64, types.int64), codegen


@intrinsic
def inner_products_tile(typingctx, vectors, a, a_row, b, b_row, c, c_row):
    """Writes the 4 x 4 inner products of rows of A with rows of B, of whole vectors of floats."""

    def codegen(context, builder, signature, args):
        vectors, a, a_row, b, b_row, c, c_row = args

        sums = []
        for top in range(0, TILE, HIGH):
            start = _offset(builder, a, a_row, top)
            sums += _inner_products(builder, vectors, start, a_row, b, b_row)
        sums = _sums_of_lanes(builder, sums)
        for i in range(TILE):
            lanes = [TILE * i + j for j in range(TILE)]
            lanes = ir.Constant(ir.VectorType(_I32, TILE), lanes)
            products = builder.shuffle_vector(sums, sums, lanes)
            _store(builder, products, _offset(builder, c, c_row, i), 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


def _inner_products(builder, vectors, a, a_row, b, b_row):
    """Inner products, lane by lane, of ``HIGH`` rows of A with ``TILE`` rows of B."""
    kind = ir.VectorType(_FLOAT, SHORT)
    zeros = ir.Constant(kind, [0.0] * SHORT)

    def body(index, sums):
        shift = builder.mul(index, _number(SHORT * F32))
        left, right = (
            [
                _load(builder, builder.add(_offset(builder, x, row, i), shift), kind, 4)
                for i in range(rows)
            ]
            for x, row, rows in ((a, a_row, HIGH), (b, b_row, TILE))
        )
        pairs = ((x, y) for x in left for y in right)
        return [_fma(builder, x, y, total) for (x, y), total in zip(pairs, sums, strict=True)]

    steps = builder.mul(vectors, _number(LANES // SHORT))
    sums = counted_loop(builder, steps, [zeros] * (HIGH * TILE), body)
    if SHORT == LANES:
        return sums
    all_lanes = ir.Constant(_INTS, list(range(LANES)))
    return [builder.shuffle_vector(x, zeros, all_lanes) for x in sums]
