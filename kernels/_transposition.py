"""Transposition of blocks of 16 x 16 elements; see ``_vectors`` and ``_elements`` for the terms."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import _llvm as llvm
from ._elements import emit_converted, emit_load_converted, emit_store_converted
from ._llvm import F32, LANES, WIDE_REGISTERS

__all__ = [
    "gather_transposed",
    "load_transposed",
    "store_transposed",
    "transpose_8",
]


def _transposed(builder, rows):
    """The transpose of 16 vectors: off-diagonal blocks of 8, 4, 2 and 1 change places."""
    rows = list(rows)
    for half in (8, 4, 2, 1):
        low = [i if not i & half else LANES + i - half for i in range(LANES)]
        high = [i + half if not i & half else LANES + i for i in range(LANES)]
        for i in range(LANES):
            if not i & half:
                pair = rows[i], rows[i + half]
                rows[i] = builder.shuffle_vector(*pair, ir.Constant(llvm.INTS, low))
                rows[i + half] = builder.shuffle_vector(*pair, ir.Constant(llvm.INTS, high))
    return rows


def _lanes_of_row(builder, row, rows, columns):
    """``columns`` for a row below ``rows``, else 0."""
    inside = builder.icmp_signed("<", ir.Constant(rows.type, row), rows)
    return builder.select(inside, columns, ir.Constant(columns.type, 0))


@intrinsic(prefer_literal=True)
def load_transposed(typingctx, dtype, source, source_row, rows, columns, target, target_row):
    """Writes the transpose of a block of at most 16 x 16 elements as 16 x 16 floats.

    ``dtype`` is a literal code of ``load_as_float``. Elements beyond ``rows`` and ``columns`` are
    not read and count as zeros.
    """

    def codegen(context, builder, signature, args):
        _, source, source_row, rows, columns, target, target_row = args
        code = dtype.literal_value

        if WIDE_REGISTERS or code == 0:
            block = [
                emit_load_converted(
                    builder,
                    code,
                    llvm.offset(builder, source, source_row, i),
                    _lanes_of_row(builder, i, rows, columns),
                )
                for i in range(LANES)
            ]
        else:
            block = _load_row_by_row(builder, code, source, source_row, rows, columns)
        for i, row in enumerate(_transposed(builder, block)):
            llvm.store(builder, row, llvm.offset(builder, target, target_row, i), 4)
        return context.get_dummy_value()

    return types.void(dtype, *[types.int64] * 6), codegen


def _load_row_by_row(builder, code, source, source_row, rows, columns):
    """A block of vectors by a loop, so that the code for parts of vectors is there once."""
    block = cgutils.alloca_once(builder, ir.ArrayType(llvm.VECTOR, LANES))
    with cgutils.for_range(builder, ir.Constant(rows.type, LANES)) as loop:
        inside = builder.icmp_signed("<", loop.index, rows)
        count = builder.select(inside, columns, ir.Constant(columns.type, 0))
        row = builder.add(source, builder.mul(source_row, loop.index))
        _store_in_block(builder, block, loop.index, emit_load_converted(builder, code, row, count))
    return [_load_from_block(builder, block, ir.Constant(rows.type, i)) for i in range(LANES)]


def _store_in_block(builder, block, index, value):
    place = builder.gep(block, [ir.Constant(llvm.I32, 0), index], inbounds=True)
    builder.store(value, place).align = F32


def _load_from_block(builder, block, index):
    value = builder.load(builder.gep(block, [ir.Constant(llvm.I32, 0), index], inbounds=True))
    value.align = F32
    return value


@intrinsic(prefer_literal=True)
def store_transposed(typingctx, dtype, source, source_row, target, target_row, rows, columns):
    """Writes the transpose of 16 x 16 floats, at most ``rows`` x ``columns`` elements.

    ``dtype`` is a literal code of ``load_as_float``; ``rows`` and ``columns`` count at the target.
    """

    def codegen(context, builder, signature, args):
        _, source, source_row, target, target_row, rows, columns = args
        block = [
            llvm.load(builder, llvm.offset(builder, source, source_row, i), llvm.VECTOR, 4)
            for i in range(LANES)
        ]
        code, block = dtype.literal_value, _transposed(builder, block)

        if WIDE_REGISTERS:
            for i, row in enumerate(block):
                place = llvm.offset(builder, target, target_row, i)
                count = _lanes_of_row(builder, i, rows, columns)
                emit_store_converted(builder, code, row, place, count)
        else:
            _store_row_by_row(builder, code, block, target, target_row, rows, columns)
        return context.get_dummy_value()

    return types.void(dtype, *[types.int64] * 6), codegen


def _store_row_by_row(builder, code, rows, target, target_row, count, columns):
    """Writes a block of vectors; parts of vectors by a loop, so that their code is there once."""
    most = ir.Constant(count.type, LANES)
    whole = builder.and_(
        builder.icmp_signed(">=", count, most), builder.icmp_signed(">=", columns, most)
    )
    with builder.if_else(whole) as (then, otherwise):
        with then:
            for i, row in enumerate(rows):
                place = llvm.offset(builder, target, target_row, i)
                llvm.store(builder, emit_converted(builder, code, row), place, 2 if code else 4)
        with otherwise:
            block = cgutils.alloca_once(builder, ir.ArrayType(llvm.VECTOR, LANES))
            for i, row in enumerate(rows):
                _store_in_block(builder, block, ir.Constant(count.type, i), row)
            least = builder.select(builder.icmp_signed("<", count, most), count, most)
            with cgutils.for_range(builder, least) as loop:
                row = _load_from_block(builder, block, loop.index)
                place = builder.add(target, builder.mul(target_row, loop.index))
                emit_store_converted(builder, code, row, place, columns)


@intrinsic
def transpose_8(typingctx, source, source_row, target, target_row):
    """Writes the transpose of 8 x 8 floats, by registers of 8."""

    def codegen(context, builder, signature, args):
        source, source_row, target, target_row = args
        half = ir.VectorType(llvm.FLOAT, 4)

        def shuffled(x, y, lanes):
            return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(llvm.I32, 8), lanes))

        for part in (0, 4):
            # Row i beside row i + 4, of which 4 columns each are transposed.
            rows = []
            for i in range(4):
                pair = [
                    llvm.load(
                        builder,
                        builder.add(
                            llvm.offset(builder, source, source_row, row), llvm.number(F32 * part)
                        ),
                        half,
                        4,
                    )
                    for row in (i, i + 4)
                ]
                rows.append(shuffled(*pair, list(range(8))))
            low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
            left, right = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
            for j, lanes in ((0, low), (2, high)):
                pairs = [shuffled(*rows[i : i + 2], lanes) for i in (0, 2)]
                for k, chosen in ((j, left), (j + 1, right)):
                    place = llvm.offset(builder, target, target_row, part + k)
                    llvm.store(builder, shuffled(*pairs, chosen), place, 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic(prefer_literal=True)
def gather_transposed(typingctx, dtype, table, shift, columns, target, target_row):
    """Writes the transpose of 16 rows of at most 16 elements as 16 x 16 floats.

    Row i starts ``shift`` bytes behind the address (64 bits) at ``table + 8 i``. ``dtype`` is a
    literal code of ``load_as_float``. Elements beyond ``columns`` are not read and count as zeros.
    """

    def codegen(context, builder, signature, args):
        _, table, shift, columns, target, target_row = args
        block = []
        for i in range(LANES):
            row = llvm.load(builder, builder.add(table, ir.Constant(llvm.I64, 8 * i)), llvm.I64, 8)
            row = builder.add(row, shift)
            block.append(emit_load_converted(builder, dtype.literal_value, row, columns))
        for i, row in enumerate(_transposed(builder, block)):
            llvm.store(builder, row, llvm.offset(builder, target, target_row, i), 4)
        return context.get_dummy_value()

    return types.void(dtype, *[types.int64] * 5), codegen
