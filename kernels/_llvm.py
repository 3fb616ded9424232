"""What intrinsics for Numba are emitted with: LLVM's types, and its instructions on vectors.

Names are those of the intrinsics of ``_vectors`` that do the same in kernels, so import it as a
module, ``from . import _llvm as llvm``.
"""

import numba
from llvmlite import binding, ir
from numba.core import cgutils

__all__ = [
    "BLENDS",
    "F32",
    "FLOAT",
    "FLOATS",
    "I16",
    "I32",
    "I64",
    "INTS",
    "LANES",
    "MASK",
    "REGISTER",
    "VECTOR",
    "WIDE_REGISTERS",
    "call",
    "chosen_lanes",
    "constant",
    "fma",
    "lane_mask",
    "load",
    "number",
    "offset",
    "pointer",
    "prefetch",
    "select",
    "splat",
    "store",
]

LANES = 16
F32 = 4
"""Bytes of a float."""

FLOAT = ir.FloatType()
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)
INTS = ir.VectorType(I32, LANES)


_features = (numba.config.CPU_FEATURES or binding.get_host_cpu_features().flatten()).split(",")
WIDE_REGISTERS = "+avx512f" in _features
"""Whether registers hold 16 floats, with masks for their lanes, and there are 32 of them."""
REGISTER = LANES if WIDE_REGISTERS else 8
"""Floats of a register."""
FLOATS = ir.VectorType(FLOAT, REGISTER)
BLENDS = "+avx" in _features
"""Whether lanes of registers of 8 floats are chosen by the signs of another's."""


def pointer(builder, address, pointee):
    """An address as a pointer."""
    return builder.inttoptr(address, pointee.as_pointer())


def load(builder, address, pointee, align):
    """The value at an address, which is a multiple of ``align``."""
    value = builder.load(pointer(builder, address, pointee))
    value.align = align
    return value


def store(builder, value, address, align):
    """Writes a value to an address, which is a multiple of ``align``."""
    builder.store(value, pointer(builder, address, value.type)).align = align


def offset(builder, address, stride, count):
    """An address ``count`` strides further."""
    return builder.add(address, builder.mul(stride, ir.Constant(stride.type, count)))


def splat(builder, value, lanes=LANES):
    """A value in all lanes."""
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)


def constant(value):
    """A float in every lane."""
    return ir.Constant(VECTOR, [value] * LANES)


def call(builder, name, result, arguments, fastmath=()):
    """Calls an external function, such as an intrinsic of LLVM."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, arguments, fastmath=fastmath)


def fma(builder, x, y, z):
    """``x * y + z``."""
    return call(builder, f"llvm.fma.v{x.type.count}f32", x.type, [x, y, z])


def lane_mask(builder, count):
    """Mask of the first ``count`` lanes."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, splat(builder, builder.trunc(count, I32)))


def chosen_lanes(builder, bits, lanes):
    """What `select` chooses lanes by: those of the lowest bits that are set.

    Where registers have no masks, these would be spread out anew at each use in a loop; signs are
    used as they are.
    """
    if WIDE_REGISTERS or not BLENDS:
        bits = builder.trunc(bits, ir.IntType(lanes))
        return builder.bitcast(bits, ir.VectorType(ir.IntType(1), lanes))
    kind = ir.VectorType(I32, lanes)
    places = ir.Constant(kind, list(range(31, 31 - lanes, -1)))
    signs = builder.shl(splat(builder, builder.trunc(bits, I32), lanes), places)
    return builder.bitcast(signs, ir.VectorType(FLOAT, lanes))


def select(builder, chosen, x, y):
    """Floats of ``x`` in the lanes that are ``chosen_lanes``, of ``y`` in the others."""
    if chosen.type.element == FLOAT:
        return call(builder, "llvm.x86.avx.blendv.ps.256", x.type, [y, x, chosen])
    return builder.select(chosen, x, y)


def number(value):
    """A 64-bit integer."""
    return ir.Constant(I64, value)


def prefetch(builder, address, to_write=False):
    """Begins to bring the line at an address to the second-level cache, to be read or written."""
    arguments = [
        pointer(builder, address, ir.IntType(8)),
        *(ir.Constant(I32, value) for value in (int(to_write), 2, 1)),  # second level; data
    ]
    call(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
