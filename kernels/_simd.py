"""Vector code for Numba kernels: 16 floats at a time, by LLVM's own vector types.

Loops that LLVM must vectorise by itself are at its mercy; these intrinsics are not. A ``Vector`` is
an ordinary Numba value that lives in registers (``<16 x float>``, split by LLVM where registers are
narrower). Memory is addressed by integers, as ``tensor.data_ptr()`` gives them, with strides in
bytes, so that one compilation serves all shapes and layouts; nothing checks bounds.
"""

import operator

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

__all__ = [
    "COLUMNS",
    "F32",
    "LANES",
    "ROWS",
    "WIDE_REGISTERS",
    "broadcast",
    "exp",
    "exp2",
    "fma",
    "gather_transposed",
    "get",
    "get_int",
    "keep",
    "lanes_below",
    "lanes_in",
    "load",
    "load_as_float",
    "load_lanes",
    "load_transposed",
    "log",
    "maximum",
    "multiply_tile",
    "prefetch",
    "put",
    "reduce_add",
    "reduce_max",
    "select",
    "store",
    "store_as",
    "store_transposed",
]

LANES = 16
F32 = 4
"""Bytes of a float."""

_FLOAT = ir.FloatType()
_I32 = ir.IntType(32)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_INTS = ir.VectorType(_I32, LANES)


def _wide_registers() -> bool:
    features = numba.config.CPU_FEATURES or binding.get_host_cpu_features().flatten()
    return "+avx512f" in features


WIDE_REGISTERS = _wide_registers()
"""Whether registers hold 16 floats, with masks for their lanes, and there are 32 of them."""
ROWS, COLUMNS = (8, 2) if WIDE_REGISTERS else (6, 1)
"""Most rows and vectors of columns of a register tile of ``multiply_tile``."""


class _VectorType(types.Type):
    def __init__(self):
        super().__init__(name="Vector(float32, 16)")


class _MaskType(types.Type):
    def __init__(self):
        super().__init__(name="Mask(16)")


vector = _VectorType()
mask = _MaskType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _VECTOR)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, _MASK)


def _pointer(builder, address, pointee):
    return builder.inttoptr(address, pointee.as_pointer())


def _load(builder, address, pointee, align):
    value = builder.load(_pointer(builder, address, pointee))
    value.align = align
    return value


def _store(builder, value, address, align):
    builder.store(value, _pointer(builder, address, value.type)).align = align


def _offset(builder, address, stride, count):
    return builder.add(address, builder.mul(stride, ir.Constant(stride.type, count)))


def _splat(builder, value, lanes=LANES):
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def _constant(value):
    return ir.Constant(_VECTOR, [value] * LANES)


def _call(builder, name, result, arguments, fastmath=()):
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=fastmath)


def _fma(builder, x, y, z):
    return _call(builder, f"llvm.fma.v{x.type.count}f32", x.type, [x, y, z])


def _lane_mask(builder, count):
    """Mask of the first ``count`` lanes."""
    lanes = ir.Constant(_INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(count, _I32)))


@intrinsic
def broadcast(typingctx, value):
    """A float in every lane."""

    def codegen(context, builder, signature, args):
        return _splat(builder, args[0])

    return vector(types.float32), codegen


@intrinsic
def load(typingctx, address):
    """16 floats."""

    def codegen(context, builder, signature, args):
        return _load(builder, args[0], _VECTOR, 4)

    return vector(types.int64), codegen


@intrinsic
def load_lanes(typingctx, address, count):
    """The first ``count`` floats, zeros in the other lanes; touches no memory beyond them."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(builder, args[0], _VECTOR)
        arguments = [
            pointer,
            ir.Constant(_I32, 4),
            _lane_mask(builder, args[1]),
            _constant(0.0),
        ]
        return _call(builder, "llvm.masked.load.v16f32.p0", _VECTOR, arguments)

    return vector(types.int64, types.int64), codegen


@intrinsic
def store(typingctx, address, value):
    """Writes 16 floats."""

    def codegen(context, builder, signature, args):
        _store(builder, args[1], args[0], 4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def get(typingctx, address):
    """The float at an address."""

    def codegen(context, builder, signature, args):
        return _load(builder, args[0], _FLOAT, 4)

    return types.float32(types.int64), codegen


@intrinsic
def put(typingctx, address, value):
    """Writes a float."""

    def codegen(context, builder, signature, args):
        _store(builder, args[1], args[0], 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def get_int(typingctx, address):
    """The 64-bit integer at an address."""

    def codegen(context, builder, signature, args):
        return _load(builder, args[0], ir.IntType(64), 8)

    return types.int64(types.int64), codegen


def _binary(name):
    @intrinsic
    def operation(typingctx, x, y):
        def codegen(context, builder, signature, args):
            return getattr(builder, name)(*args)

        return vector(vector, vector), codegen

    return operation


def _overload_operator(symbol, name):
    operation = _binary(name)

    @overload(symbol, inline="always")
    def implementation(x, y):
        if isinstance(x, _VectorType) and isinstance(y, _VectorType):
            return lambda x, y: operation(x, y)
        return None


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overload_operator(_symbol, _name)


@intrinsic
def fma(typingctx, x, y, z):
    """``x * y + z``."""

    def codegen(context, builder, signature, args):
        return _fma(builder, *args)

    return vector(vector, vector, vector), codegen


@intrinsic
def maximum(typingctx, x, y):
    """The larger of either lane."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), *args)

    return vector(vector, vector), codegen


@intrinsic
def lanes_below(typingctx, count):
    """Mask of the lanes whose index is below ``count``."""

    def codegen(context, builder, signature, args):
        return _lane_mask(builder, args[0])

    return mask(types.int64), codegen


@intrinsic
def lanes_in(typingctx, low, high, value):
    """Mask of the lanes whose integer bounds at two addresses hold ``low <= value < high``."""

    def codegen(context, builder, signature, args):
        below = _load(builder, args[0], _INTS, 4)
        above = _load(builder, args[1], _INTS, 4)
        value = _splat(builder, builder.trunc(args[2], _I32))
        return builder.and_(
            builder.icmp_signed("<=", below, value), builder.icmp_signed("<", value, above)
        )

    return mask(types.int64, types.int64, types.int64), codegen


@intrinsic
def select(typingctx, condition, x, y):
    """``x`` where the mask holds, else ``y``."""

    def codegen(context, builder, signature, args):
        return builder.select(*args)

    return vector(mask, vector, vector), codegen


@intrinsic
def exp(typingctx, x):
    """Exponential of lanes at most 88; relative error below 2e-7; 0 far below -87."""

    def codegen(context, builder, signature, args):
        x = _at_least(builder, args[0], -127 * 0.6931471805599453)
        rounded = _fma(builder, x, _constant(1.4426950408889634), _constant(_EXPONENT))
        n = builder.fsub(rounded, _constant(_EXPONENT))
        # x - n ln 2 in two steps keeps the digits that a multiple of log2(e) would lose.
        f = _fma(builder, n, _constant(-0.693359375), x)
        f = _fma(builder, n, _constant(2.12194440e-4), f)
        p = _constant(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1, 1):
            p = _fma(builder, p, f, _constant(c))
        return builder.fmul(p, _power_of_2(builder, rounded))

    return vector(vector), codegen


_EXPONENT = 12582912.0 + 127
"""Added to n from -127 on it rounds to a whole number and leaves n + 127, the bits of a float's
exponent, in the lowest bits of the sum."""


def _at_least(builder, x, bound):
    """The larger of lanes and a bound; keeps NaN."""
    low = builder.fcmp_ordered("<", x, _constant(bound))
    return builder.select(low, _constant(bound), x)


def _power_of_2(builder, rounded):
    """2 ** n of what ``_EXPONENT`` was added to; 0 for n = -127."""
    bits = builder.shl(builder.bitcast(rounded, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(bits, _VECTOR)


@intrinsic
def reduce_add(typingctx, x):
    """Sum of the lanes, in a fixed order."""

    def codegen(context, builder, signature, args):
        arguments = [ir.Constant(_FLOAT, 0.0), args[0]]
        return _call(builder, "llvm.vector.reduce.fadd.v16f32", _FLOAT, arguments, ("reassoc",))

    return types.float32(vector), codegen


@intrinsic
def reduce_max(typingctx, x):
    """Largest lane."""

    def codegen(context, builder, signature, args):
        return _call(builder, "llvm.vector.reduce.fmax.v16f32", _FLOAT, [args[0]], ("nnan",))

    return types.float32(vector), codegen


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
    sums = [builder.phi(_VECTOR) for _ in range(rows * vectors)]
    columns = [
        _load(builder, builder.add(right, ir.Constant(integer, 64 * j)), _VECTOR, 4)
        for j in range(vectors)
    ]
    updated = []
    for i in range(rows):
        value = _splat(builder, _load(builder, _offset(builder, left, a_row, i), _FLOAT, 4))
        updated += [
            _fma(builder, value, column, sums[i * vectors + j]) for j, column in enumerate(columns)
        ]
    following = builder.add(k, one)
    for phi, start, step in (
        (k, zero, following),
        (left, a, builder.add(left, a_step)),
        (right, b, builder.add(right, b_step)),
        *((phi, _constant(0.0), value) for phi, value in zip(sums, updated, strict=True)),
    ):
        phi.add_incoming(start, entry)
        phi.add_incoming(step, loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, done)

    builder.position_at_end(done)
    totals = []
    for value in updated:
        total = builder.phi(_VECTOR)
        total.add_incoming(_constant(0.0), entry)
        total.add_incoming(value, loop)
        totals.append(total)
    factor = _splat(builder, scale)
    places = [
        builder.add(_offset(builder, c, c_row, i), ir.Constant(integer, 64 * j))
        for i in range(rows)
        for j in range(vectors)
    ]
    with builder.if_else(accumulate) as (then, otherwise):
        with then:
            for total, place in zip(totals, places, strict=True):
                before = _load(builder, place, _VECTOR, 4)
                _store(builder, _fma(builder, total, factor, before), place, 4)
        with otherwise:
            for total, place in zip(totals, places, strict=True):
                _store(builder, builder.fmul(total, factor), place, 4)


@intrinsic
def multiply_tile(
    typingctx, rows, vectors, depth, a, a_row, a_step, b, b_step, c, c_row, scale, accumulate
):
    """A register tile of a matrix product: at most ``ROWS`` rows by ``COLUMNS`` vectors."""

    def codegen(context, builder, signature, args):
        rows, vectors, *operands, accumulate = args
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
        return context.get_dummy_value()

    integers = [types.int64] * 10
    return types.void(*integers, types.float32, types.boolean), codegen


def _masked_load(builder, address, element, count, name):
    kind = ir.VectorType(element, LANES)
    arguments = [
        _pointer(builder, address, kind),
        ir.Constant(_I32, element.width // 8 if isinstance(element, ir.IntType) else 4),
        _lane_mask(builder, count),
        ir.Constant(kind, [0 if isinstance(element, ir.IntType) else 0.0] * LANES),
    ]
    return _call(builder, f"llvm.masked.load.{name}.p0", kind, arguments)


_I16 = ir.IntType(16)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_SHORTS = ir.VectorType(_I16, LANES)


def _bfloat16_to_float(builder, shorts):
    wide = builder.shl(builder.zext(shorts, _INTS), ir.Constant(_INTS, [16] * LANES))
    return builder.bitcast(wide, _VECTOR)


def _float_to_bfloat16(builder, value):
    """Rounds to nearest, ties to even; keeps NaN."""
    bits = builder.bitcast(value, _INTS)
    odd = builder.and_(
        builder.lshr(bits, ir.Constant(_INTS, [16] * LANES)), ir.Constant(_INTS, [1] * LANES)
    )
    rounded = builder.add(bits, builder.add(odd, ir.Constant(_INTS, [0x7FFF] * LANES)))
    nan = builder.fcmp_unordered("uno", value, value)
    rounded = builder.select(nan, ir.Constant(_INTS, [0x7FC00000] * LANES), rounded)
    return builder.trunc(builder.lshr(rounded, ir.Constant(_INTS, [16] * LANES)), _SHORTS)


def _load_converted(builder, code, address, count):
    """The first ``count`` of 16 elements of a dtype, as floats, zeros beyond."""
    if code == 0:
        return _masked_load(builder, address, _FLOAT, count, "v16f32")
    if WIDE_REGISTERS:
        shorts = _masked_load(builder, address, _I16, count, "v16i16")
    else:
        shorts = _load_shorts(builder, address, count)
    if code == 1:
        return _bfloat16_to_float(builder, shorts)
    return builder.fpext(builder.bitcast(shorts, _HALVES), _VECTOR)


def _load_shorts(builder, address, count):
    """The first ``count`` of 16 shorts, zeros beyond, where there are no masked loads of them."""
    whole = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
    return _choose(
        builder,
        whole,
        lambda: _load(builder, address, _SHORTS, 2),
        lambda: _load_in_pieces(builder, address, _at_least_0(builder, count)),
    )


def _load_in_pieces(builder, address, count):
    """The first ``count`` shorts, less than 16: 1, 2, 4 and 8 of them by its bits."""
    value = ir.Constant(ir.VectorType(_I16, 1), [0])
    for lanes in (1, 2, 4, 8):
        wanted = _has_bit(builder, count, lanes)
        before = builder.and_(count, ir.Constant(count.type, -2 * lanes))
        place = builder.add(address, builder.mul(before, ir.Constant(count.type, 2)))
        both = ir.Constant(ir.VectorType(_I32, 2 * lanes), list(range(2 * lanes)))
        zeros = ir.Constant(value.type, [0] * lanes)

        def load_piece(value=value, place=place, both=both):
            return builder.shuffle_vector(_load(builder, place, value.type, 2), value, both)

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


def _converted(builder, code, value):
    """Floats, or the shorts that stand for them in a dtype."""
    if code == 1:
        return _float_to_bfloat16(builder, value)
    if code == 2:
        return builder.bitcast(builder.fptrunc(value, _HALVES), _SHORTS)
    return value


def _store_converted(builder, code, value, address, count):
    """Writes the first ``count`` lanes in a dtype."""
    value = _converted(builder, code, value)
    if WIDE_REGISTERS:
        name, align = ("v16f32", 4) if code == 0 else ("v16i16", 2)
        pointer, align = _pointer(builder, address, value.type), ir.Constant(_I32, align)
        arguments = [value, pointer, align, _lane_mask(builder, count)]
        _call(builder, f"llvm.masked.store.{name}.p0", ir.VoidType(), arguments)
        return
    whole = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
    with builder.if_else(whole, likely=True) as (then, otherwise):
        with then:
            _store(builder, value, address, 2 if code else 4)
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
                value, value, ir.Constant(ir.VectorType(_I32, lanes), list(places))
            )
            for places in (range(lanes), range(lanes, 2 * lanes))
        )
        wanted = _has_bit(builder, count, lanes)
        with builder.if_then(wanted):
            _store(builder, low, address, size)
        shift = ir.Constant(address.type, lanes * size)
        address = builder.select(wanted, builder.add(address, shift), address)
        value = builder.select(wanted, high, low)


@intrinsic(prefer_literal=True)
def load_as_float(typingctx, dtype, address, count):
    """The first ``count`` of 16 elements as floats, zeros beyond; ``dtype`` is a literal code.

    0 is float32, 1 bfloat16, 2 float16. Touches no memory beyond ``count`` elements.
    """

    def codegen(context, builder, signature, args):
        return _load_converted(builder, dtype.literal_value, *args[1:])

    return vector(dtype, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def store_as(typingctx, dtype, address, value, count):
    """Writes the first ``count`` lanes in the dtype of a literal code; see ``load_as_float``."""

    def codegen(context, builder, signature, args):
        _, address, value, count = args
        _store_converted(builder, dtype.literal_value, value, address, count)
        return context.get_dummy_value()

    return types.void(dtype, types.int64, vector, types.int64), codegen


def _transposed(builder, rows):
    """The transpose of 16 vectors: off-diagonal blocks of 8, 4, 2 and 1 change places."""
    rows = list(rows)
    for half in (8, 4, 2, 1):
        low = [i if not i & half else LANES + i - half for i in range(LANES)]
        high = [i + half if not i & half else LANES + i for i in range(LANES)]
        for i in range(LANES):
            if not i & half:
                pair = rows[i], rows[i + half]
                rows[i] = builder.shuffle_vector(*pair, ir.Constant(_INTS, low))
                rows[i + half] = builder.shuffle_vector(*pair, ir.Constant(_INTS, high))
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
                _load_converted(
                    builder,
                    code,
                    _offset(builder, source, source_row, i),
                    _lanes_of_row(builder, i, rows, columns),
                )
                for i in range(LANES)
            ]
        else:
            block = _load_row_by_row(builder, code, source, source_row, rows, columns)
        for i, row in enumerate(_transposed(builder, block)):
            _store(builder, row, _offset(builder, target, target_row, i), 4)
        return context.get_dummy_value()

    return types.void(dtype, *[types.int64] * 6), codegen


def _load_row_by_row(builder, code, source, source_row, rows, columns):
    """A block of vectors by a loop, so that the code for parts of vectors is there once."""
    block = cgutils.alloca_once(builder, ir.ArrayType(_VECTOR, LANES))
    with cgutils.for_range(builder, ir.Constant(rows.type, LANES)) as loop:
        inside = builder.icmp_signed("<", loop.index, rows)
        count = builder.select(inside, columns, ir.Constant(columns.type, 0))
        row = builder.add(source, builder.mul(source_row, loop.index))
        _store_in_block(builder, block, loop.index, _load_converted(builder, code, row, count))
    return [_load_from_block(builder, block, ir.Constant(rows.type, i)) for i in range(LANES)]


def _store_in_block(builder, block, index, value):
    place = builder.gep(block, [ir.Constant(_I32, 0), index], inbounds=True)
    builder.store(value, place).align = F32


def _load_from_block(builder, block, index):
    value = builder.load(builder.gep(block, [ir.Constant(_I32, 0), index], inbounds=True))
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
            _load(builder, _offset(builder, source, source_row, i), _VECTOR, 4)
            for i in range(LANES)
        ]
        code, block = dtype.literal_value, _transposed(builder, block)

        if WIDE_REGISTERS:
            for i, row in enumerate(block):
                place = _offset(builder, target, target_row, i)
                count = _lanes_of_row(builder, i, rows, columns)
                _store_converted(builder, code, row, place, count)
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
                place = _offset(builder, target, target_row, i)
                _store(builder, _converted(builder, code, row), place, 2 if code else 4)
        with otherwise:
            block = cgutils.alloca_once(builder, ir.ArrayType(_VECTOR, LANES))
            for i, row in enumerate(rows):
                _store_in_block(builder, block, ir.Constant(count.type, i), row)
            least = builder.select(builder.icmp_signed("<", count, most), count, most)
            with cgutils.for_range(builder, least) as loop:
                row = _load_from_block(builder, block, loop.index)
                place = builder.add(target, builder.mul(target_row, loop.index))
                _store_converted(builder, code, row, place, columns)


@intrinsic(prefer_literal=True)
def gather_transposed(typingctx, dtype, table, shift, columns, target, target_row):
    """Writes the transpose of 16 rows of at most 16 elements as 16 x 16 floats.

    Row i starts ``shift`` bytes behind the address (64 bits) at ``table + 8 i``. ``dtype`` is a
    literal code of ``load_as_float``. Elements beyond ``columns`` are not read and count as zeros.
    """

    def codegen(context, builder, signature, args):
        _, table, shift, columns, target, target_row = args
        integer = ir.IntType(64)
        block = []
        for i in range(LANES):
            row = _load(builder, builder.add(table, ir.Constant(integer, 8 * i)), integer, 8)
            row = builder.add(row, shift)
            block.append(_load_converted(builder, dtype.literal_value, row, columns))
        for i, row in enumerate(_transposed(builder, block)):
            _store(builder, row, _offset(builder, target, target_row, i), 4)
        return context.get_dummy_value()

    return types.void(dtype, *[types.int64] * 5), codegen


@intrinsic
def log(typingctx, x):
    """Natural logarithm of positive, normal lanes; error below 2e-7, relative or absolute."""

    def codegen(context, builder, signature, args):
        # x = 2 ** n * m with m from sqrt(1/2) to sqrt(2), by its bits; then a series in m - 1.
        bits = builder.bitcast(args[0], _INTS)
        whole = builder.ashr(
            builder.sub(bits, ir.Constant(_INTS, [0x3F3504F3] * LANES)),
            ir.Constant(_INTS, [23] * LANES),
        )
        exponent = builder.shl(whole, ir.Constant(_INTS, [23] * LANES))
        f = builder.fsub(builder.bitcast(builder.sub(bits, exponent), _VECTOR), _constant(1.0))
        n = builder.sitofp(whole, _VECTOR)
        square = builder.fmul(f, f)
        p = _constant(7.0376836292e-2)
        for c in (
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ):
            p = _fma(builder, p, f, _constant(c))
        p = builder.fmul(builder.fmul(p, f), square)
        p = _fma(builder, n, _constant(-2.12194440e-4), p)
        p = _fma(builder, square, _constant(-0.5), p)
        return _fma(builder, n, _constant(0.693359375), builder.fadd(f, p))

    return vector(vector), codegen


@intrinsic
def keep(typingctx, array):
    """Keeps an array from being freed before this line, which its address does not.

    Numba frees an array behind the last use of its name; taking ``array.ctypes.data`` is one.
    """

    def codegen(context, builder, signature, args):
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def exp2(typingctx, x):
    """2 to the power of lanes below 127; relative error below 2e-7; 0 far below -126."""

    def codegen(context, builder, signature, args):
        # 2 ** (n + f), the fraction by a polynomial on [-0.5, 0.5].
        x = _at_least(builder, args[0], -127.0)
        rounded = builder.fadd(x, _constant(_EXPONENT))
        f = builder.fsub(x, builder.fsub(rounded, _constant(_EXPONENT)))
        p = _constant(1.5345812004e-4)
        for c in (
            1.3399931219e-3,
            9.6184889571e-3,
            5.5503287770e-2,
            2.4022646891e-1,
            6.9314720574e-1,
            1.0,
        ):
            p = _fma(builder, p, f, _constant(c))
        return builder.fmul(p, _power_of_2(builder, rounded))

    return vector(vector), codegen


@intrinsic
def prefetch(typingctx, address):
    """Begins to bring the line at an address to the second-level cache; any address will do."""

    def codegen(context, builder, signature, args):
        arguments = [
            _pointer(builder, args[0], ir.IntType(8)),
            *(ir.Constant(_I32, value) for value in (0, 2, 1)),  # to read; second level; data
        ]
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.void(types.int64), codegen
