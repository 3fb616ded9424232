"""Parts of vectors, and elements of other dtypes than float32, in memory; see ``_vectors``.

Dtypes go by literal codes: 0 is float32, 1 bfloat16, 2 float16.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import _llvm as llvm
from ._llvm import LANES, WIDE_REGISTERS
from ._vectors import vector

__all__ = [
    "emit_converted",
    "emit_load_converted",
    "emit_store_converted",
    "load_as_float",
    "store_as",
]

_HALVES = ir.VectorType(ir.HalfType(), LANES)
_SHORTS = ir.VectorType(llvm.I16, LANES)


def _masked_load(builder, address, element, count, name):
    kind = ir.VectorType(element, LANES)
    arguments = [
        llvm.pointer(builder, address, kind),
        ir.Constant(llvm.I32, element.width // 8 if isinstance(element, ir.IntType) else 4),
        llvm.lane_mask(builder, count),
        ir.Constant(kind, [0 if isinstance(element, ir.IntType) else 0.0] * LANES),
    ]
    return llvm.call(builder, f"llvm.masked.load.{name}.p0", kind, arguments)


def _bfloat16_to_float(builder, shorts):
    wide = builder.shl(builder.zext(shorts, llvm.INTS), ir.Constant(llvm.INTS, [16] * LANES))
    return builder.bitcast(wide, llvm.VECTOR)


def _float_to_bfloat16(builder, value):
    """Rounds to nearest, ties to even; keeps NaN."""
    bits = builder.bitcast(value, llvm.INTS)
    odd = builder.and_(
        builder.lshr(bits, ir.Constant(llvm.INTS, [16] * LANES)),
        ir.Constant(llvm.INTS, [1] * LANES),
    )
    rounded = builder.add(bits, builder.add(odd, ir.Constant(llvm.INTS, [0x7FFF] * LANES)))
    nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(nan, ir.Constant(llvm.INTS, [0x7FC00000] * LANES), rounded)
    return builder.trunc(builder.lshr(rounded, ir.Constant(llvm.INTS, [16] * LANES)), _SHORTS)


def emit_load_converted(builder, code, address, count):
    """The first ``count`` of 16 elements of a dtype, as floats, zeros beyond."""
    if code == 0:
        return _masked_load(builder, address, llvm.FLOAT, count, "v16f32")
    if WIDE_REGISTERS:
        shorts = _masked_load(builder, address, llvm.I16, count, "v16i16")
    else:
        shorts = _load_shorts(builder, address, count)
    if code == 1:
        return _bfloat16_to_float(builder, shorts)
    return builder.fpext(builder.bitcast(shorts, _HALVES), llvm.VECTOR)


def _load_shorts(builder, address, count):
    """The first ``count`` of 16 shorts, zeros beyond, where there are no masked loads of them."""
    whole = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
    return _choose(
        builder,
        whole,
        lambda: llvm.load(builder, address, _SHORTS, 2),
        lambda: _load_in_pieces(builder, address, _at_least_0(builder, count)),
    )


def _load_in_pieces(builder, address, count):
    """The first ``count`` shorts, less than 16: 1, 2, 4 and 8 of them by its bits."""
    value = ir.Constant(ir.VectorType(llvm.I16, 1), [0])
    for lanes in (1, 2, 4, 8):
        wanted = _has_bit(builder, count, lanes)
        before = builder.and_(count, ir.Constant(count.type, -2 * lanes))
        place = builder.add(address, builder.mul(before, ir.Constant(count.type, 2)))
        both = ir.Constant(ir.VectorType(llvm.I32, 2 * lanes), list(range(2 * lanes)))
        zeros = ir.Constant(value.type, [0] * lanes)

        def load_piece(value=value, place=place, both=both):
            return builder.shuffle_vector(llvm.load(builder, place, value.type, 2), value, both)

        def fill_up(value=value, zeros=zeros, both=both):
            return builder.shuffle_vector(value, zeros, both)

        value = _choose(builder, wanted, load_piece, fill_up)
    return value


def _choose(builder, condition, emit, emit_otherwise):
    """The value of either of two pieces of code, of which one runs."""
    with builder.if_else(condition) as (then, otherwise):
        with then:
            value, block = emit(), builder.block
        with otherwise:
            other, other_block = emit_otherwise(), builder.block
    result = builder.phi(value.type)
    result.add_incoming(value, block)
    result.add_incoming(other, other_block)
    return result


def _at_least_0(builder, count):
    zero = ir.Constant(count.type, 0)
    return builder.select(builder.icmp_signed(">", count, zero), count, zero)


def _has_bit(builder, count, bit):
    bit, zero = ir.Constant(count.type, bit), ir.Constant(count.type, 0)
    return builder.icmp_signed("!=", builder.and_(count, bit), zero)


def emit_converted(builder, code, value):
    """Floats, or the shorts that stand for them in a dtype."""
    if code == 1:
        return _float_to_bfloat16(builder, value)
    if code == 2:
        return builder.bitcast(builder.fptrunc(value, _HALVES), _SHORTS)
    return value


def emit_store_converted(builder, code, value, address, count):
    """Writes the first ``count`` lanes in a dtype."""
    value = emit_converted(builder, code, value)
    if WIDE_REGISTERS:
        name, align = ("v16f32", 4) if code == 0 else ("v16i16", 2)
        pointer, align = llvm.pointer(builder, address, value.type), ir.Constant(llvm.I32, align)
        arguments = [value, pointer, align, llvm.lane_mask(builder, count)]
        llvm.call(builder, f"llvm.masked.store.{name}.p0", ir.VoidType(), arguments)
        return
    whole = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
    with builder.if_else(whole, likely=True) as (then, otherwise):
        with then:
            llvm.store(builder, value, address, 2 if code else 4)
        with otherwise:
            _store_in_pieces(builder, value, address, count)


def _store_in_pieces(builder, value, address, count):
    """Writes the first ``count`` lanes, less than 16: 8, 4, 2 and 1 of them by its bits.

    Without wide registers there are no masked stores of shorts, and those of floats can take tens
    of cycles.
    """
    element = value.type.element
    size = element.width // 8 if isinstance(element, ir.IntType) else 4
    count = _at_least_0(builder, count)
    for lanes in (8, 4, 2, 1):
        low, high = (
            builder.shuffle_vector(
                value, value, ir.Constant(ir.VectorType(llvm.I32, lanes), list(places))
            )
            for places in (range(lanes), range(lanes, 2 * lanes))
        )
        wanted = _has_bit(builder, count, lanes)
        with builder.if_then(wanted):
            llvm.store(builder, low, address, size)
        shift = ir.Constant(address.type, lanes * size)
        address = builder.select(wanted, builder.add(address, shift), address)
        value = builder.select(wanted, high, low)


@intrinsic(prefer_literal=True)
def load_as_float(typingctx, dtype, address, count):
    """The first ``count`` of 16 elements as floats, zeros beyond; ``dtype`` is a literal code.

    0 is float32, 1 bfloat16, 2 float16. Touches no memory beyond ``count`` elements.
    """

    def codegen(context, builder, signature, args):
        return emit_load_converted(builder, dtype.literal_value, *args[1:])

    return vector(dtype, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def store_as(typingctx, dtype, address, value, count):
    """Writes the first ``count`` lanes in the dtype of a literal code; see ``load_as_float``."""

    def codegen(context, builder, signature, args):
        _, address, value, count = args
        emit_store_converted(builder, dtype.literal_value, value, address, count)
        return context.get_dummy_value()

    return types.void(dtype, types.int64, vector, types.int64), codegen
