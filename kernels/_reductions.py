"""Sums and inner products of rows in registers, for Numba kernels; see ``_simd`` for the terms."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._simd import (
    _I32,
    _INTS,
    _VECTOR,
    F32,
    LANES,
    _constant,
    _fma,
    _load,
    _load_converted,
    _offset,
    _store,
    vector,
)

__all__ = ["TILE", "counted_loop", "inner_products_tile", "sum_columns", "sum_rows"]

TILE = 4
"""Rows of either factor of ``inner_products_tile``."""

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
    following = builder.add(index, _number(1))
    starts, nexts = (_number(0), *states), (following, *updated)
    for phi, start, value in zip((index, *inside), starts, nexts, strict=True):
        phi.add_incoming(start, entry)
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)

    builder.position_at_end(done)
    results = []
    for start, value in zip(states, updated, strict=True):
        phi = builder.phi(start.type)
        phi.add_incoming(start, entry)
        phi.add_incoming(value, loop)
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


def _load_first(builder, address, count):
    """The first ``count`` of 16 floats, zeros beyond."""
    return _load_converted(builder, 0, address, count)


@intrinsic
def sum_rows(typingctx, source, row, columns):
    """The sums of 16 rows of floats."""

    def codegen(context, builder, signature, args):
        source, row, columns = args

        def body(index, sums):
            first = builder.mul(index, _number(LANES))
            start = builder.add(source, builder.mul(first, _number(F32)))
            count = builder.sub(columns, first)
            return [
                builder.fadd(total, _load_first(builder, _offset(builder, start, row, i), count))
                for i, total in enumerate(sums)
            ]

        zeros = [_constant(0.0)] * LANES
        return _sums_of_lanes(
            builder, counted_loop(builder, _vectors(builder, columns), zeros, body)
        )

    return vector(*[types.int64] * 3), codegen


def _vectors(builder, count):
    return builder.sdiv(builder.add(count, _number(LANES - 1)), _number(LANES))


@intrinsic
def sum_columns(typingctx, source, row, rows, columns, target):
    """Writes the sums of at most 64 columns of floats, in whole vectors."""

    def codegen(context, builder, signature, args):
        source, row, rows, columns, target = args
        end = builder.append_basic_block("end")
        switch = builder.switch(_vectors(builder, columns), end)
        for vectors in range(1, 5):
            block = builder.append_basic_block(f"vectors{vectors}")
            switch.add_case(_number(vectors), block)
            builder.position_at_end(block)
            _emit_sum_columns(builder, vectors, source, row, rows, columns, target)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


def _emit_sum_columns(builder, vectors, source, row, rows, columns, target):
    unrolled = 4 // vectors
    counts = [_number(LANES)] * vectors
    counts[-1] = builder.sub(columns, _number(LANES * (vectors - 1)))

    def add_rows(number):
        def body(_, states):
            start, *sums = states
            for i in range(number):
                for j, count in enumerate(counts):
                    place = builder.add(start, _number(LANES * F32 * j))
                    k = i * vectors + j
                    sums[k] = builder.fadd(sums[k], _load_first(builder, place, count))
                start = builder.add(start, row)
            return [start, *sums]

        return body

    states = [source] + [_constant(0.0)] * (unrolled * vectors)
    whole = builder.sdiv(rows, _number(unrolled))
    states = counted_loop(builder, whole, states, add_rows(unrolled))
    if unrolled > 1:
        states = counted_loop(builder, builder.srem(rows, _number(unrolled)), states, add_rows(1))
    for j in range(vectors):
        total = states[1 + j]
        for i in range(1, unrolled):
            total = builder.fadd(total, states[1 + i * vectors + j])
        _store(builder, total, builder.add(target, _number(LANES * F32 * j)), 4)


@intrinsic
def inner_products_tile(typingctx, vectors, a, a_row, b, b_row, c, c_row):
    """Writes the 4 x 4 inner products of rows of A with rows of B, of whole vectors of floats."""

    def codegen(context, builder, signature, args):
        vectors, a, a_row, b, b_row, c, c_row = args

        def body(index, sums):
            shift = builder.mul(index, _number(LANES * F32))
            left, right = (
                [
                    _load(builder, builder.add(_offset(builder, x, row, i), shift), _VECTOR, 4)
                    for i in range(TILE)
                ]
                for x, row in ((a, a_row), (b, b_row))
            )
            return [
                _fma(builder, left[i], right[j], sums[TILE * i + j])
                for i in range(TILE)
                for j in range(TILE)
            ]

        zeros = [_constant(0.0)] * TILE**2
        sums = _sums_of_lanes(builder, counted_loop(builder, vectors, zeros, body))
        for i in range(TILE):
            lanes = [TILE * i + j for j in range(TILE)]
            lanes = ir.Constant(ir.VectorType(_I32, TILE), lanes)
            products = builder.shuffle_vector(sums, sums, lanes)
            _store(builder, products, _offset(builder, c, c_row, i), 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen
