"""Inner loops over rows of maps, with what they need of the gates in registers.

Rows are columns of a plane, or the channels of a position: at most ``MOST`` floats of a row at a
time. Gates of channels are in vectors ``block`` bytes apart.

Rows of planes are taken a register at a time. The last one ends where the row does, and shares
floats with the one before it, for parts of registers are slow to write where these have no masks.
"""

from functools import reduce

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import _llvm as llvm
from .._elements import emit_load_converted, emit_store_converted
from .._reductions import counted_loop
from .._vectors import F32, LANES, REGISTER, vector

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
AHEAD = 2048
"""Bytes from what is written to what is asked for meanwhile."""


def _for_each_number(builder, columns, lanes, emit):
    """Emits code for each number of vectors of ``lanes`` that so many columns can take."""
    vectors = builder.sdiv(builder.add(columns, llvm.number(lanes - 1)), llvm.number(lanes))
    end = builder.append_basic_block("end")
    switch = builder.switch(vectors, end)
    for number in range(1, MOST // lanes + 1):
        block = builder.append_basic_block(f"vectors{number}")
        switch.add_case(llvm.number(number), block)
        builder.position_at_end(block)
        emit(number)
        builder.branch(end)
    builder.position_at_end(end)


def _for_each_width(builder, columns, emit):
    """Emits code for 1 to 4 vectors; ``emit`` takes the number of floats of each.

    Four whole ones have code of their own, without masks: most of a wide map is made of them.
    """
    whole = llvm.number(LANES)

    def emit_number(number):
        counts = [whole] * (number - 1)
        last = builder.sub(columns, llvm.number(LANES * (number - 1)))
        if number == MOST // LANES:
            _for_both(
                builder,
                builder.icmp_signed("==", columns, llvm.number(MOST)),
                lambda all_whole: emit([*counts, whole if all_whole else last]),
            )
        else:
            emit([*counts, last])

    _for_each_number(builder, columns, LANES, emit_number)


class _Row:
    """Registers of a row of a plane, of which that of a row shorter than one is not whole."""

    def __init__(self, builder, columns, number):
        self.builder, self.columns = builder, columns
        self.whole = number > 1
        self.starts = [llvm.number(REGISTER * F32 * i) for i in range(number)]
        if self.whole:
            last = builder.sub(columns, llvm.number(REGISTER))
            self.starts[-1] = builder.mul(last, llvm.number(F32))
        kind = ir.VectorType(llvm.I32, REGISTER)
        shared = builder.sub(llvm.number(REGISTER * number), columns)
        shared = llvm.splat(builder, builder.trunc(shared, llvm.I32), REGISTER)
        lanes = ir.Constant(kind, list(range(REGISTER)))
        self.new = builder.sext(builder.icmp_signed(">=", lanes, shared), kind)

    def load(self, address):
        """The floats of each register; those of one that is not whole have zeros behind them."""
        if self.whole:
            places = [self.builder.add(address, start) for start in self.starts]
            return [llvm.load(self.builder, place, llvm.FLOATS, F32) for place in places]
        value = emit_load_converted(self.builder, 0, address, self.columns)
        return [self._with_lanes(value, REGISTER)]

    def store(self, address, values):
        """Writes each register."""
        if self.whole:
            for start, value in zip(self.starts, values, strict=True):
                llvm.store(self.builder, value, self.builder.add(address, start), F32)
        else:
            value = self._with_lanes(values[0], LANES)
            emit_store_converted(self.builder, 0, value, address, self.columns)

    def prefetch(self, address):
        """Asks for the lines that whole registers will be written to."""
        if self.whole:
            for start in self.starts[:: LANES // REGISTER]:
                llvm.prefetch(self.builder, self.builder.add(address, start), to_write=True)

    def without_shared(self, values):
        """The last register has zeros for floats that are in the one before it, too."""
        if not self.whole:
            return list(values)
        bits = self.builder.and_(self.builder.bitcast(values[-1], self.new.type), self.new)
        return [*values[:-1], self.builder.bitcast(bits, llvm.FLOATS)]

    def _with_lanes(self, value, lanes):
        if lanes == value.type.count:
            return value
        chosen = [i % value.type.count for i in range(lanes)]
        chosen = ir.Constant(ir.VectorType(llvm.I32, lanes), chosen)
        return self.builder.shuffle_vector(value, value, chosen)


def _for_both(builder, condition, emit):
    """Emits code for a condition that holds, and for one that does not."""
    with builder.if_else(condition) as (then, otherwise):
        with then:
            emit(True)
        with otherwise:
            emit(False)


def _at(builder, address, vector):
    return builder.add(address, llvm.number(LANES * F32 * vector))


def _next_register(builder, address):
    return builder.add(address, llvm.number(REGISTER * F32))


def _load_first(builder, address, vector, count):
    return emit_load_converted(builder, 0, _at(builder, address, vector), count)


def _load_number(builder, address, index):
    place = builder.add(address, builder.mul(index, llvm.number(F32)))
    return llvm.splat(builder, llvm.load(builder, place, llvm.FLOAT, 4), REGISTER)


def _add_to(builder, address, value):
    llvm.store(
        builder, builder.fadd(llvm.load(builder, address, llvm.VECTOR, 4), value), address, 4
    )


def _emit_stream(builder, address, value):
    write = builder.store(value, llvm.pointer(builder, address, value.type))
    write.align = value.type.count * F32
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

        def emit_loop(number, sloped, streams):
            line = _Row(builder, columns, number)
            factors = line.load(others)
            offsets = line.load(other_slopes) if sloped else None

            def body(index, states):
                source, target = states
                gate = _load_number(builder, gates, index)
                slope = _load_number(builder, slopes, index) if sloped else None
                # All of a row before any is written, which may be where the row is.
                values = line.load(source)
                for i, factor in enumerate(factors):
                    factor = builder.fmul(gate, factor)
                    if sloped:
                        offset = builder.fadd(slope, offsets[i])
                        values[i] = llvm.fma(builder, values[i], factor, offset)
                    else:
                        values[i] = builder.fmul(values[i], factor)
                if streams:
                    for start, value in zip(line.starts, values, strict=True):
                        _emit_stream(builder, builder.add(target, start), value)
                else:
                    line.store(target, values)
                    line.prefetch(builder.add(target, llvm.number(AHEAD)))
                return [builder.add(source, row), builder.add(target, row)]

            counted_loop(builder, rows, [x, out], body)

        def emit(number):
            _for_both(
                builder,
                sloped,
                lambda sloped: _for_both(
                    builder, streams, lambda streams: emit_loop(number, sloped, streams)
                ),
            )

        _for_each_number(builder, columns, REGISTER, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, types.boolean, types.boolean), codegen


@intrinsic
def sum_both_ways(typingctx, x, row, rows, columns, column_sums, row_sums, accumulate):
    """Writes the sums of columns, and the sums of each row by lanes, a register a row.

    The latter are added to what is there where ``accumulate``.
    """

    def codegen(context, builder, signature, args):
        x, row, rows, columns, column_sums, row_sums, accumulate = args

        def emit_loop(number, accumulate):
            line = _Row(builder, columns, number)

            def body(index, states):
                source, target, *sums = states
                values = line.load(source)
                sums = [builder.fadd(*pair) for pair in zip(sums, values, strict=True)]
                terms = line.without_shared(values)
                if accumulate:
                    terms.append(llvm.load(builder, target, llvm.FLOATS, F32))
                llvm.store(builder, reduce(builder.fadd, terms), target, F32)
                return [builder.add(source, row), _next_register(builder, target), *sums]

            states = [x, row_sums] + [ir.Constant(llvm.FLOATS, None)] * number
            _, _, *sums = counted_loop(builder, rows, states, body)
            line.store(column_sums, sums)

        def emit(number):
            _for_both(builder, accumulate, lambda accumulate: emit_loop(number, accumulate))

        _for_each_number(builder, columns, REGISTER, emit)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.boolean), codegen


@intrinsic
def weigh_rows(typingctx, x, grad, row, rows, columns, gates, others, totals, row_sums, accumulate):
    """Multiplies rows of x and of gradients with each other.

    Products by the gates of rows are summed over rows; those by the gates of columns are summed by
    lanes, a register a row, which is added to what is there where ``accumulate``.
    """

    def codegen(context, builder, signature, args):
        x, grad, row, rows, columns, gates, others, totals, row_sums, accumulate = args

        def emit_loop(number, accumulate):
            line = _Row(builder, columns, number)
            factors = line.without_shared(line.load(others))

            def body(index, states):
                source, upstream, target, *sums = states
                gate = _load_number(builder, gates, index)
                total = (
                    llvm.load(builder, target, llvm.FLOATS, F32)
                    if accumulate
                    else ir.Constant(llvm.FLOATS, None)
                )
                pairs = zip(line.load(source), line.load(upstream), strict=True)
                for i, pair in enumerate(pairs):
                    value = builder.fmul(*pair)
                    total = llvm.fma(builder, value, factors[i], total)
                    sums[i] = llvm.fma(builder, value, gate, sums[i])
                llvm.store(builder, total, target, F32)
                following = [builder.add(address, row) for address in (source, upstream)]
                return [*following, _next_register(builder, target), *sums]

            states = [x, grad, row_sums] + [ir.Constant(llvm.FLOATS, None)] * number
            _, _, _, *sums = counted_loop(builder, rows, states, body)
            line.store(totals, sums)

        def emit(number):
            _for_both(builder, accumulate, lambda accumulate: emit_loop(number, accumulate))

        _for_each_number(builder, columns, REGISTER, emit)
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
