"""Vector code for Numba kernels: 16 floats at a time, by LLVM's own vector types.

Loops that LLVM must vectorise by itself are at its mercy; these intrinsics are not. A ``Vector`` is
an ordinary Numba value that lives in registers (``<16 x float>``, split by LLVM where registers are
narrower). Memory is addressed by integers, as ``tensor.data_ptr()`` gives them, with strides in
bytes, so that one compilation serves all shapes and layouts; nothing checks bounds.
"""

import operator

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from . import _llvm as llvm
from ._llvm import F32, LANES, REGISTER, WIDE_REGISTERS

__all__ = [
    "F32",
    "LANES",
    "REGISTER",
    "WIDE_REGISTERS",
    "broadcast",
    "exp",
    "exp2",
    "fma",
    "get",
    "get_int",
    "keep",
    "lanes_below",
    "lanes_in",
    "load",
    "load_lanes",
    "log",
    "mask",
    "maximum",
    "prefetch",
    "put",
    "put_int",
    "reduce_add",
    "reduce_max",
    "select",
    "store",
    "vector",
]


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
        super().__init__(manager, fe_type, llvm.VECTOR)


@register_model(_MaskType)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, llvm.MASK)


@intrinsic
def broadcast(typingctx, value):
    """A float in every lane."""

    def codegen(context, builder, signature, args):
        return llvm.splat(builder, args[0])

    return vector(types.float32), codegen


@intrinsic
def load(typingctx, address):
    """16 floats."""

    def codegen(context, builder, signature, args):
        return llvm.load(builder, args[0], llvm.VECTOR, 4)

    return vector(types.int64), codegen


@intrinsic
def load_lanes(typingctx, address, count):
    """The first ``count`` floats, zeros in the other lanes; touches no memory beyond them."""

    def codegen(context, builder, signature, args):
        pointer = llvm.pointer(builder, args[0], llvm.VECTOR)
        arguments = [
            pointer,
            ir.Constant(llvm.I32, 4),
            llvm.lane_mask(builder, args[1]),
            llvm.constant(0.0),
        ]
        return llvm.call(builder, "llvm.masked.load.v16f32.p0", llvm.VECTOR, arguments)

    return vector(types.int64, types.int64), codegen


@intrinsic
def store(typingctx, address, value):
    """Writes 16 floats."""

    def codegen(context, builder, signature, args):
        llvm.store(builder, args[1], args[0], 4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def get(typingctx, address):
    """The float at an address."""

    def codegen(context, builder, signature, args):
        return llvm.load(builder, args[0], llvm.FLOAT, 4)

    return types.float32(types.int64), codegen


@intrinsic
def put(typingctx, address, value):
    """Writes a float."""

    def codegen(context, builder, signature, args):
        llvm.store(builder, args[1], args[0], 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def get_int(typingctx, address):
    """The 64-bit integer at an address."""

    def codegen(context, builder, signature, args):
        return llvm.load(builder, args[0], llvm.I64, 8)

    return types.int64(types.int64), codegen


@intrinsic
def put_int(typingctx, address, value):
    """Writes a 64-bit integer."""

    def codegen(context, builder, signature, args):
        llvm.store(builder, args[1], args[0], 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


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
        return llvm.fma(builder, *args)

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
        return llvm.lane_mask(builder, args[0])

    return mask(types.int64), codegen


@intrinsic
def lanes_in(typingctx, low, high, value):
    """Mask of the lanes whose integer bounds at two addresses hold ``low <= value < high``."""

    def codegen(context, builder, signature, args):
        below = llvm.load(builder, args[0], llvm.INTS, 4)
        above = llvm.load(builder, args[1], llvm.INTS, 4)
        value = llvm.splat(builder, builder.trunc(args[2], llvm.I32))
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
        rounded = llvm.fma(builder, x, llvm.constant(1.4426950408889634), llvm.constant(_EXPONENT))
        n = builder.fsub(rounded, llvm.constant(_EXPONENT))
        # x - n ln 2 in two steps keeps the digits that a multiple of log2(e) would lose.
        f = llvm.fma(builder, n, llvm.constant(-0.693359375), x)
        f = llvm.fma(builder, n, llvm.constant(2.12194440e-4), f)
        p = llvm.constant(1.9875691500e-4)
        for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1, 1):
            p = llvm.fma(builder, p, f, llvm.constant(c))
        return builder.fmul(p, _power_of_2(builder, rounded))

    return vector(vector), codegen


@intrinsic
def exp2(typingctx, x):
    """2 to the power of lanes below 127; relative error below 2e-7; 0 far below -126."""

    def codegen(context, builder, signature, args):
        # 2 ** (n + f), the fraction by a polynomial on [-0.5, 0.5].
        x = _at_least(builder, args[0], -127.0)
        rounded = builder.fadd(x, llvm.constant(_EXPONENT))
        f = builder.fsub(x, builder.fsub(rounded, llvm.constant(_EXPONENT)))
        p = llvm.constant(1.5345812004e-4)
        for c in (
            1.3399931219e-3,
            9.6184889571e-3,
            5.5503287770e-2,
            2.4022646891e-1,
            6.9314720574e-1,
            1.0,
        ):
            p = llvm.fma(builder, p, f, llvm.constant(c))
        return builder.fmul(p, _power_of_2(builder, rounded))

    return vector(vector), codegen


_EXPONENT = 12582912.0 + 127
"""Added to n from -127 on it rounds to a whole number and leaves n + 127, the bits of a float's
exponent, in the lowest bits of the sum."""


def _at_least(builder, x, bound):
    """The larger of lanes and a bound; keeps NaN."""
    low = builder.fcmp_ordered("<", x, llvm.constant(bound))
    return builder.select(low, llvm.constant(bound), x)


def _power_of_2(builder, rounded):
    """2 ** n of what ``_EXPONENT`` was added to; 0 for n = -127."""
    bits = builder.shl(builder.bitcast(rounded, llvm.INTS), ir.Constant(llvm.INTS, [23] * LANES))
    return builder.bitcast(bits, llvm.VECTOR)


@intrinsic
def log(typingctx, x):
    """Natural logarithm of positive, normal lanes; error below 2e-7, relative or absolute."""

    def codegen(context, builder, signature, args):
        # x = 2 ** n * m with m from sqrt(1/2) to sqrt(2), by its bits; then a series in m - 1.
        bits = builder.bitcast(args[0], llvm.INTS)
        whole = builder.ashr(
            builder.sub(bits, ir.Constant(llvm.INTS, [0x3F3504F3] * LANES)),
            ir.Constant(llvm.INTS, [23] * LANES),
        )
        exponent = builder.shl(whole, ir.Constant(llvm.INTS, [23] * LANES))
        f = builder.fsub(
            builder.bitcast(builder.sub(bits, exponent), llvm.VECTOR), llvm.constant(1.0)
        )
        n = builder.sitofp(whole, llvm.VECTOR)
        square = builder.fmul(f, f)
        p = llvm.constant(7.0376836292e-2)
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
            p = llvm.fma(builder, p, f, llvm.constant(c))
        p = builder.fmul(builder.fmul(p, f), square)
        p = llvm.fma(builder, n, llvm.constant(-2.12194440e-4), p)
        p = llvm.fma(builder, square, llvm.constant(-0.5), p)
        return llvm.fma(builder, n, llvm.constant(0.693359375), builder.fadd(f, p))

    return vector(vector), codegen


@intrinsic
def reduce_add(typingctx, x):
    """Sum of the lanes, in a fixed order."""

    def codegen(context, builder, signature, args):
        arguments = [ir.Constant(llvm.FLOAT, 0.0), args[0]]
        return llvm.call(
            builder, "llvm.vector.reduce.fadd.v16f32", llvm.FLOAT, arguments, ("reassoc",)
        )

    return types.float32(vector), codegen


@intrinsic
def reduce_max(typingctx, x):
    """Largest lane."""

    def codegen(context, builder, signature, args):
        return llvm.call(
            builder, "llvm.vector.reduce.fmax.v16f32", llvm.FLOAT, [args[0]], ("nnan",)
        )

    return types.float32(vector), codegen


@intrinsic
def keep(typingctx, array):
    """Keeps an array from being freed before this line, which its address does not.

    Numba frees an array behind the last use of its name; taking ``array.ctypes.data`` is one.
    """

    def codegen(context, builder, signature, args):
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def prefetch(typingctx, address):
    """Begins to bring the line at an address to the second-level cache; any address will do."""

    def codegen(context, builder, signature, args):
        llvm.prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
