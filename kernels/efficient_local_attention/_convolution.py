"""Convolution along strips, and its gradients, for Numba kernels.

A strip has the 16 channels of a position in a vector, and rows of zeros on either side as far as
the kernel reaches. Groups of 1, 2, 4, 8 or 16 channels share vectors: each vector is taken apart
to as many, which repeat one channel of every group in all lanes of the group. Where a group fills
registers, those of a few positions are summed with the weights of all taps in others. Other groups
are products of matrices. Strips of a chunk of channels are ``column`` bytes apart.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import _llvm as llvm
from .._blocks import clear, copy_in_transposed, copy_out_transposed, even_share, multiply, padded
from .._jit import inline, integers, jit, part
from .._reductions import counted_loop
from .._transposition import gather_transposed, store_transposed
from .._vectors import F32, LANES, REGISTER, WIDE_REGISTERS, load, put_int, store

__all__ = ["convolve", "convolve_gradient", "pack", "packed_size", "unpack", "work_size"]

FLOAT = 0
"""Code of float32 for the functions of ``_blocks``."""
VECTOR = LANES * F32
KERNEL = integers(3)
ROWS = 8 if WIDE_REGISTERS else 6
"""Most rows of a tile of ``_multiply_lanes``."""
ROOM = 14
"""Registers for sums of positions and weights of taps."""


def _is_dense(group):
    return LANES % group > 0


is_dense = inline(_is_dense)


@inline
def _fills_registers(group, taps):
    """Whether ``_convolve_in_registers`` takes such a convolution."""
    return group % REGISTER == 0 and (taps == 5 or taps == 7)


def packed_size(chunk, group, taps):
    """Floats that packed weights of a chunk take."""
    if _is_dense(group):
        return (chunk * taps + LANES) * -(-group // LANES) * LANES
    return (-(-chunk // LANES) + LANES) * taps * group * LANES


def work_size(chunk, group, taps, length):
    """Floats of working memory for strips of at most a length."""
    if _is_dense(group):
        return 2 * (length + taps) * (-(-chunk // LANES) + 1) * LANES
    return max((length + taps) * group * LANES, 2 * LANES + LANES * LANES)


@intrinsic
def _multiply_lanes_tile(typingctx, rows, depth, a, a_row, a_step, b, b_step, c, c_row, accumulate):
    def codegen(context, builder, signature, args):
        rows, *operands = args
        end = builder.append_basic_block("end")
        switch = builder.switch(rows, end)
        for count in range(1, ROWS + 1):
            block = builder.append_basic_block(f"rows{count}")
            switch.add_case(ir.Constant(rows.type, count), block)
            builder.position_at_end(block)
            _emit_lanes_tile(builder, count, *operands)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, types.boolean), codegen


def _emit_lanes_tile(builder, rows, depth, a, a_row, a_step, b, b_step, c, c_row, accumulate):
    def body(_, states):
        left, right, *sums = states
        factor = llvm.load(builder, right, llvm.VECTOR, 4)
        sums = [
            llvm.fma(
                builder,
                llvm.load(builder, llvm.offset(builder, left, a_row, i), llvm.VECTOR, 4),
                factor,
                x,
            )
            for i, x in enumerate(sums)
        ]
        return [builder.add(left, a_step), builder.add(right, b_step), *sums]

    _, _, *sums = counted_loop(builder, depth, [a, b] + [llvm.constant(0.0)] * rows, body)
    places = [llvm.offset(builder, c, c_row, i) for i in range(rows)]
    with builder.if_else(accumulate) as (then, otherwise):
        with then:
            for total, place in zip(sums, places, strict=True):
                before = llvm.load(builder, place, llvm.VECTOR, 4)
                llvm.store(builder, builder.fadd(before, total), place, 4)
        with otherwise:
            for total, place in zip(sums, places, strict=True):
                llvm.store(builder, total, place, 4)


@jit
def _multiply_lanes(rows, depth, a, a_row, a_step, b, b_step, c, c_row, accumulate):
    """``C[i] = sum over k of A[i, k] * B[k]`` of vectors, or adds that where ``accumulate``."""
    i = 0
    while i < rows:
        count = even_share(rows - i, ROWS)
        _multiply_lanes_tile(
            count,
            depth,
            a + i * a_row,
            a_row,
            a_step,
            b,
            b_step,
            c + i * c_row,
            c_row,
            accumulate,
        )
        i += count


@intrinsic(prefer_literal=True)
def _convolve_tile(typingctx, taps, positions, group, x, weights, y):
    """Convolves a register of channels at a few positions, as many as there is room for.

    Args:
        taps: A literal.
        positions: Their number.
        group: Channels of a group.
        x: The group's first channel at the first position that a tap reaches.
        weights: Those of the register's channels for the first tap and the group's first channel.
        y: The register's channels at the first position.
    """

    def codegen(context, builder, signature, args):
        _, positions, *operands = args
        end = builder.append_basic_block("end")
        switch = builder.switch(positions, end)
        for count in range(1, ROOM - taps.literal_value + 1):
            block = builder.append_basic_block(f"positions{count}")
            switch.add_case(ir.Constant(positions.type, count), block)
            builder.position_at_end(block)
            _emit_tile(builder, taps.literal_value, count, *operands)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(taps, *[types.int64] * 5), codegen


def _emit_tile(builder, taps, positions, group, x, weights, y):
    tap = builder.mul(group, llvm.number(VECTOR))

    def body(_, states):
        channel, row, *sums = states
        factors = [
            llvm.load(builder, llvm.offset(builder, row, tap, t), llvm.FLOATS, F32)
            for t in range(taps)
        ]
        for i in range(positions + taps - 1):
            place = builder.add(channel, llvm.number(VECTOR * i))
            value = llvm.splat(builder, llvm.load(builder, place, llvm.FLOAT, F32), REGISTER)
            for t, factor in enumerate(factors):
                if 0 <= i - t < positions:
                    sums[i - t] = llvm.fma(builder, value, factor, sums[i - t])
        following = builder.add(channel, llvm.number(F32)), builder.add(row, llvm.number(VECTOR))
        return [*following, *sums]

    states = [x, weights] + [ir.Constant(llvm.FLOATS, None)] * positions
    _, _, *sums = counted_loop(builder, group, states, body)
    for i, total in enumerate(sums):
        llvm.store(builder, total, builder.add(y, llvm.number(VECTOR * i)), F32)


@jit
def _convolve_in_registers(x, length, kernel, y):
    """Convolves 16 channels; x is the first position that a tap reaches."""
    weights, group, taps = kernel
    for lane in range(0, LANES, REGISTER):
        channels, shift = lane // group * group * F32, lane * F32
        i = 0
        while i < length:
            source, target = x + i * VECTOR + channels, y + i * VECTOR + shift
            count = even_share(length - i, ROOM - taps)
            if taps == 5:
                _convolve_tile(5, count, group, source, weights + shift, target)
            else:
                _convolve_tile(7, count, group, source, weights + shift, target)
            i += count


@intrinsic(prefer_literal=True)
def _store_spread(typingctx, group, source, target):
    """Writes ``group`` vectors: the j-th has channel j of each group in all lanes of the group."""

    def codegen(context, builder, signature, args):
        _, source, target = args
        size = group.literal_value
        value = llvm.load(builder, source, llvm.VECTOR, 4)
        for j in range(size):
            lanes = ir.Constant(llvm.INTS, [lane // size * size + j for lane in range(LANES)])
            place = builder.add(target, ir.Constant(target.type, VECTOR * j))
            llvm.store(builder, builder.shuffle_vector(value, value, lanes), place, 4)
        return context.get_dummy_value()

    return types.void(group, types.int64, types.int64), codegen


@jit
def _spread(group, source, length, pad, target):
    """Takes a strip apart, to ``group`` vectors a position, the padding apart.

    Returns:
        Where its padding begins; that of the strip itself where channels are groups of their own.
    """
    place = target + pad * group * VECTOR
    for i in range(length):
        if group == 2:
            _store_spread(2, source + i * VECTOR, place + i * 2 * VECTOR)
        elif group == 4:
            _store_spread(4, source + i * VECTOR, place + i * 4 * VECTOR)
        elif group == 8:
            _store_spread(8, source + i * VECTOR, place + i * 8 * VECTOR)
        elif group == 16:
            _store_spread(16, source + i * VECTOR, place + i * 16 * VECTOR)
        else:
            return source - pad * VECTOR
    return target


@inline
def _clear_padding(group, length, pad, target):
    if group > 1:
        clear(target, pad * group * LANES)
        clear(target + (pad + length) * group * VECTOR, pad * group * LANES)


@jit
def _join(x, start, length, count, column, target, row):
    """Copies a strip's blocks to rows of all channels."""
    for n in range((count + LANES - 1) // LANES):
        for i in range(length):
            value = load(x + n * column + (start + i) * VECTOR)
            store(target + i * row + n * VECTOR, value)


@inline
def _convolve_dense(x, start, length, count, column, weights, flipped, work, y):
    kernel, group, taps = weights
    pad = taps // 2
    row, width = padded(count) * F32 + VECTOR, padded(group) * F32
    result = work + (length + 2 * pad) * row
    _join(x, start - pad, length + 2 * pad, count, column, work, row)
    for q in range(count // group):
        for t in range(taps):
            # What this writes beyond the group is overwritten by the next.
            tap = taps - 1 - t if flipped else t
            multiply(
                length,
                width // VECTOR,
                group,
                work + t * row + q * group * F32,
                row,
                F32,
                kernel + (q * group * taps + tap) * width,
                taps * width,
                result + q * group * F32,
                row,
                np.float32(1),
                t > 0,
            )
    for n in range((count + LANES - 1) // LANES):
        for i in range(length):
            value = load(result + i * row + n * VECTOR)
            store(y + n * column + (start + i) * VECTOR, value)


@part
def convolve(x, start, length, count, column, weights: KERNEL, flipped: types.boolean, work, y):
    """Convolves one strip of a chunk, at row ``start``, with packed weights.

    Args:
        x: Blocks of strips.
        start: Row of the strip's first position.
        length: Positions.
        count: Channels.
        column: Bytes of a block.
        weights: ``(address, group, taps)``.
        flipped: Whether they were packed so.
        work: Working memory.
        y: Blocks of strips to write.
    """
    kernel, group, taps = weights
    pad = taps // 2
    if is_dense(group):
        _convolve_dense(x, start, length, count, column, weights, flipped, work, y)
        return
    depth = taps * group
    if _fills_registers(group, taps):
        for n in range((count + LANES - 1) // LANES):
            place = n * column + start * VECTOR
            weights = kernel + n * depth * VECTOR, group, taps
            _convolve_in_registers(x + place - pad * VECTOR, length, weights, y + place)
        return
    _clear_padding(group, length, pad, work)
    for n in range((count + LANES - 1) // LANES):
        _multiply_lanes(
            length,
            depth,
            _spread(group, x + n * column + start * VECTOR, length, pad, work),
            group * VECTOR,
            VECTOR,
            kernel + n * depth * VECTOR,
            VECTOR,
            y + n * column + start * VECTOR,
            VECTOR,
            False,
        )


@part
def convolve_gradient(x, dy, start, length, count, column, sums: KERNEL, work):
    """Adds to the gradient of packed weights that are not flipped; see ``convolve``.

    Args:
        x: Blocks of the strips that were convolved.
        dy: Blocks of the gradients of the result.
        start: Row of the strip's first position.
        length: Positions.
        count: Channels.
        column: Bytes of a block.
        sums: ``(address, group, taps)`` of the gradient.
        work: Working memory.
    """
    kernel, group, taps = sums
    pad = taps // 2
    if is_dense(group):
        row, width = padded(count) * F32 + VECTOR, padded(group) * F32
        others = work + (length + 2 * pad) * row
        _join(x, start - pad, length + 2 * pad, count, column, work, row)
        _join(dy, start, length, count, column, others, row)
        for q in range(count // group):
            for t in range(taps):
                multiply(
                    group,
                    width // VECTOR,
                    length,
                    work + t * row + q * group * F32,
                    F32,
                    row,
                    others + q * group * F32,
                    row,
                    kernel + (q * group * taps + t) * width,
                    taps * width,
                    np.float32(1),
                    True,
                )
        return
    depth = taps * group
    _clear_padding(group, length, pad, work)
    for n in range((count + LANES - 1) // LANES):
        _multiply_lanes(
            depth,
            length,
            _spread(group, x + n * column + start * VECTOR, length, pad, work),
            VECTOR,
            group * VECTOR,
            dy + n * column + start * VECTOR,
            VECTOR,
            kernel + n * depth * VECTOR,
            VECTOR,
            True,
        )


@part
def pack(source, count, group, taps, flipped: types.boolean, target, work):
    """Arranges weights of a chunk (count, group, taps) so that channels are lanes.

    Lanes are output channels; or, where ``flipped``, input channels, for the convolution that
    takes gradients back, with taps from last to first. Shared vectors are (blocks, taps, group,
    16), matrices (groups, group, taps, padded group).
    """
    if is_dense(group):
        width = padded(group) * F32
        for q in range(count // group):
            matrix = source + q * group * group * taps * F32
            place = target + q * group * taps * width
            if flipped:
                for o in range(group):
                    row = matrix + o * group * taps * F32
                    copy_in_transposed(
                        FLOAT, row, taps * F32, group, taps, place + o * taps * width, width
                    )
            else:
                columns = group * taps
                copy_in_transposed(FLOAT, matrix, columns * F32, group, columns, place, width)
        return
    table, block = work, work + 2 * LANES * F32
    for n in range(0, count, LANES):
        place = target + n // LANES * taps * group * VECTOR
        for i in range(group):
            for lane in range(LANES):
                channel = min(n + lane, count - 1)
                row = channel * group + i
                if flipped:
                    row = (channel // group * group + i) * group + channel % group
                put_int(table + 8 * lane, source + row * taps * F32)
            for t in range(0, taps, LANES):
                gather_transposed(FLOAT, table, t * F32, taps - t, block, VECTOR)
                for tap in range(t, min(t + LANES, taps)):
                    position = taps - 1 - tap if flipped else tap
                    value = load(block + (tap - t) * VECTOR)
                    store(place + (position * group + i) * VECTOR, value)


@part
def unpack(source, count, group, taps, target):
    """The inverse of ``pack`` where it does not flip."""
    if is_dense(group):
        width, columns = padded(group) * F32, group * taps
        for q in range(count // group):
            place = target + q * group * columns * F32
            matrix = source + q * columns * width
            copy_out_transposed(FLOAT, matrix, width, group, columns, place, columns * F32)
        return
    for n in range(0, count, LANES):
        for i in range(group):
            for t in range(0, taps, LANES):
                store_transposed(
                    FLOAT,
                    source + (n // LANES * taps * group + t * group + i) * VECTOR,
                    group * VECTOR,
                    target + ((n * group + i) * taps + t) * F32,
                    group * taps * F32,
                    count - n,
                    taps - t,
                )
