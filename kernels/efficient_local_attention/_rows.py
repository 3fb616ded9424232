"""Inner loops over rows of maps, with what they need of the gates in registers.

Rows are columns of a plane, or the channels of a position: at most ``MOST`` floats of a row at a
time. The gates of a row's floats are in vectors ``block`` bytes apart.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import _llvm as llvm
from .._elements import emit_load_converted, emit_store_converted
from .._reductions import counted_loop
from .._vectors import F32, LANES, vector

__all__ = [
    "MOST",
    "end_streams",
    "gate_rows",
    "stream",
    "sum_both_ways",
    "sum_positions",
    "weigh_positions",
    "weigh_rows",
]

MOST = 64
"""Most floats of a row at a time."""


def _for_each_width(builder, columns, emit):
    """Emits code for 1 to 4 vectors; ``emit`` takes the number of floats of each.

    Four whole ones have code of their own, without masks: most of a wide map is made of them.
    """
    whole = llvm.number(LANES)
    vectors = builder.sdiv(builder.add(columns, llvm.number(LANES - 1)), whole)
    end = builder.append_basic_block("end")
    switch = builder.switch(vectors, end)
    for number in range(1, MOST // LANES + 1):
        block = builder.append_basic_block(f"vectors{number}")
        switch.add_case(llvm.number(number), block)
        builder.position_at_end(block)
        if number == MOST // LANES:
            with builder.if_then(builder.icmp_signed("==", columns, llvm.number(MOST))):
                emit([whole] * number)
                builder.branch(end)
        last = builder.sub(columns, llvm.number(LANES * (number - 1)))
        emit([whole] * (number - 1) + [last])
        builder.branch(end)
    builder.position_at_end(end)


def _for_both(builder, condition, emit):
    """Emits code for a condition that holds, and for one that does not."""
    with builder.if_else(condition) as (then, otherwise):
        with then:
            emit(True)
        with otherwise:
            emit(False)


def _at(builder, address, vector):
    return builder.add(address, llvm.number(LANES * F32 * vector))


def _load_first(builder, address, vector, count):
    return emit_load_converted(builder, 0, _at(builder, address, vector), count)


def _load_number(builder, address, index):
    place = builder.add(address, builder.mul(index, llvm.number(F32)))
    return llvm.splat(builder, llvm.load(builder, place, llvm.FLOAT, 4))


def _add_to(builder, address, value):
    llvm.store(
        builder, builder.fadd(llvm.load(builder, address, llvm.VECTOR, 4), value), address, 4
    )


def _emit_stream(builder, address, value):
    write = builder.store(value, llvm.pointer(builder, address, value.type))
    write.align = LANES * F32
    write.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(llvm.I32, 1)]))


@intrinsic
def stream(typingctx, address, value):
    """Writes 16 floats to the start of a cache line, past the caches."""

    def codegen(context, builder, signature, args):
        _emit_stream(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def end_streams(typingctx):
    """Makes what was streamed known to other threads before what is written from here on."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def gate_rows(
    typingctx, x, out, row, rows, columns, gates, others, slopes, other_slopes, sloped, streams
):
    """Multiplies rows by a gate a row (floats at ``gates``) and one a column (at ``others``).

    Adds a slope a row and one a column where ``sloped``. Writes past the caches where ``streams``,
    for which columns and their addresses must be in whole vectors.
    """

    def codegen(context, builder, signature, args):
        x, out, row, rows, columns, gates, others, slopes, other_slopes, sloped, streams = args

        def emit_loop(counts, sloped, streams):
            across = range(len(counts))
            factors = [llvm.load(builder, _at(builder, others, j), llvm.VECTOR, 4) for j in across]
            if sloped:
                offsets = [
                    llvm.load(builder, _at(builder, other_slopes, j), llvm.VECTOR, 4)
                    for j in across
                ]

            def body(index, states):
                source, target = states
                gate = _load_number(builder, gates, index)
                slope = _load_number(builder, slopes, index) if sloped else None
                for j, count in enumerate(counts):
                    value = _load_first(builder, source, j, count)
                    factor = builder.fmul(gate, factors[j])
                    if sloped:
                        value = llvm.fma(builder, value, factor, builder.fadd(slope, offsets[j]))
                    else:
                        value = builder.fmul(value, factor)
                    if streams:
                        _emit_stream(builder, _at(builder, target, j), value)
                    else:
                        emit_store_converted(builder, 0, value, _at(builder, target, j), count)
                return [builder.add(source, row), builder.add(target, row)]

            counted_loop(builder, rows, [x, out], body)

        def emit(counts):
            _for_both(
                builder,
                sloped,
                lambda sloped: _for_both(
                    builder, streams, lambda streams: emit_loop(counts, sloped, streams)
                ),
            )

        _for_each_width(builder, columns, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, types.boolean, types.boolean), codegen


@intrinsic
def sum_both_ways(typingctx, x, row, rows, columns, column_sums, row_sums, accumulate):
    """Writes the sums of columns, and the sums of each row by lanes, a vector a row.

    The latter are added to what is there where ``accumulate``.
    """

    def codegen(context, builder, signature, args):
        x, row, rows, columns, column_sums, row_sums, accumulate = args

        def emit_loop(counts, accumulate):
            def body(index, states):
                source, target, *sums = states
                total = llvm.load(builder, target, llvm.VECTOR, 4) if accumulate else None
                for j, count in enumerate(counts):
                    value = _load_first(builder, source, j, count)
                    sums[j] = builder.fadd(sums[j], value)
                    total = value if total is None else builder.fadd(total, value)
                llvm.store(builder, total, target, 4)
                return [builder.add(source, row), _at(builder, target, 1), *sums]

            states = [x, row_sums] + [llvm.constant(0.0)] * len(counts)
            _, _, *sums = counted_loop(builder, rows, states, body)
            for j, total in enumerate(sums):
                llvm.store(builder, total, _at(builder, column_sums, j), 4)

        def emit(counts):
            _for_both(builder, accumulate, lambda accumulate: emit_loop(counts, accumulate))

        _for_each_width(builder, columns, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.boolean), codegen


@intrinsic
def weigh_rows(typingctx, x, grad, row, rows, columns, gates, others, totals, row_sums, accumulate):
    """Multiplies rows of x and of gradients with each other.

    Products by the gates of rows are summed over rows; those by the gates of columns are summed by
    lanes, a vector a row, which is added to what is there where ``accumulate``.
    """

    def codegen(context, builder, signature, args):
        x, grad, row, rows, columns, gates, others, totals, row_sums, accumulate = args

        def emit_loop(counts, accumulate):
            factors = [_load_first(builder, others, j, count) for j, count in enumerate(counts)]

            def body(index, states):
                source, upstream, target, *sums = states
                gate = _load_number(builder, gates, index)
                total = (
                    llvm.load(builder, target, llvm.VECTOR, 4) if accumulate else llvm.constant(0.0)
                )
                for j, count in enumerate(counts):
                    value = _load_first(builder, source, j, count)
                    value = builder.fmul(value, _load_first(builder, upstream, j, count))
                    total = llvm.fma(builder, value, factors[j], total)
                    sums[j] = llvm.fma(builder, value, gate, sums[j])
                llvm.store(builder, total, target, 4)
                following = [builder.add(address, row) for address in (source, upstream)]
                return [*following, _at(builder, target, 1), *sums]

            states = [x, grad, row_sums] + [llvm.constant(0.0)] * len(counts)
            _, _, _, *sums = counted_loop(builder, rows, states, body)
            for j, total in enumerate(sums):
                llvm.store(builder, total, _at(builder, totals, j), 4)

        def emit(counts):
            _for_both(builder, accumulate, lambda accumulate: emit_loop(counts, accumulate))

        _for_each_width(builder, columns, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, types.boolean), codegen


@intrinsic
def sum_positions(typingctx, x, step, positions, channels, row, columns, block, ahead):
    """Sums channels over positions, and adds those of each position to what its column has.

    ``row`` and ``columns`` are where sums of the first 16 channels are; ``ahead`` bytes further are
    the positions to read next.
    """

    def codegen(context, builder, signature, args):
        x, step, positions, channels, row, columns, block, ahead = args

        def emit(counts):
            def body(_, states):
                source, place, *sums = states
                for j, count in enumerate(counts):
                    value = _load_first(builder, source, j, count)
                    llvm.prefetch(builder, builder.add(_at(builder, source, j), ahead))
                    _add_to(builder, llvm.offset(builder, place, block, j), value)
                    sums[j] = builder.fadd(sums[j], value)
                return [builder.add(source, step), _at(builder, place, 1), *sums]

            states = [x, columns] + [llvm.constant(0.0)] * len(counts)
            _, _, *sums = counted_loop(builder, positions, states, body)
            for j, total in enumerate(sums):
                llvm.store(builder, total, llvm.offset(builder, row, block, j), 4)

        _for_each_width(builder, channels, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8), codegen


@intrinsic
def weigh_positions(
    typingctx, x, step, grad, grad_step, positions, channels, gate, others, row, columns, block
):
    """Multiplies channels of positions of x and of gradients with each other.

    Products by the gates of columns are summed over positions; those by the gate of the row are
    added to what each column has.
    """

    def codegen(context, builder, signature, args):
        x, step, grad, grad_step, positions, channels, gate, others, row, columns, block = args

        def emit(counts):
            across = range(len(counts))
            factors = [
                llvm.load(builder, llvm.offset(builder, gate, block, j), llvm.VECTOR, 4)
                for j in across
            ]

            def body(_, states):
                source, upstream, weights, place, *sums = states
                for j, count in enumerate(counts):
                    value = _load_first(builder, source, j, count)
                    value = builder.fmul(value, _load_first(builder, upstream, j, count))
                    weight = llvm.load(
                        builder, llvm.offset(builder, weights, block, j), llvm.VECTOR, 4
                    )
                    total = llvm.offset(builder, place, block, j)
                    before = llvm.load(builder, total, llvm.VECTOR, 4)
                    llvm.store(builder, llvm.fma(builder, value, factors[j], before), total, 4)
                    sums[j] = llvm.fma(builder, value, weight, sums[j])
                following = [builder.add(source, step), builder.add(upstream, grad_step)]
                return [*following, _at(builder, weights, 1), _at(builder, place, 1), *sums]

            states = [x, grad, others, columns] + [llvm.constant(0.0)] * len(counts)
            _, _, _, _, *sums = counted_loop(builder, positions, states, body)
            for j, total in enumerate(sums):
                llvm.store(builder, total, llvm.offset(builder, row, block, j), 4)

        _for_each_width(builder, channels, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 11), codegen
