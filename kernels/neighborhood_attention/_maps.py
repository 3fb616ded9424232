"""What both ways of fused CPU code share: maps in memory, and the softmax of queries in lanes."""

from typing import NamedTuple

import numba
import numpy as np
from numba import types

from .._jit import inline, part
from .._vectors import broadcast, exp2, fma, load, log, maximum, store
from . import _plan

__all__ = [
    "BAND",
    "GEOMETRY",
    "KEY_TILE",
    "LN2",
    "LOG2E",
    "ROWS",
    "TENSOR",
    "TILE",
    "VECTOR",
    "Geometry",
    "Rows",
    "Tensor",
    "axis",
    "axis_length",
    "axis_variant",
    "origin",
    "softmax",
    "softmax_gradient",
]

INFINITY = np.float32(np.inf)
LN2 = np.float32(0.6931471805599453)
LOG2E = np.float32(1.4426950408889634)
ONE = np.float32(1)
ZERO = np.float32(0)
VECTOR = 64
"""Bytes of a vector."""


class Geometry(NamedTuple):
    """Sizes of a call, with three axes of a map: the first may be of no extent."""

    batch: int
    heads: int
    dim: int
    depth: int
    height: int
    width: int
    kernel_z: int
    kernel_y: int
    kernel_x: int
    step_z: int
    """Dilation."""
    step_y: int
    step_x: int
    extra: int
    """Additional keys."""


class Tensor(NamedTuple):
    """A map (B, Z, Y, X, heads, dim) whose last axis is contiguous; strides in bytes."""

    dtype: int
    address: int
    batch: int
    z: int
    y: int
    x: int
    head: int


class Rows(NamedTuple):
    """Windows along an axis of positions that are equal modulo a dilation; see ``_plan.Rows``."""

    start: np.ndarray
    end: np.ndarray
    query: np.ndarray
    query_end: np.ndarray
    count: int


GEOMETRY, TENSOR = (
    types.NamedUniTuple(types.int64, len(kind._fields), kind) for kind in (Geometry, Tensor)
)
ROWS = types.NamedTuple((*(types.int64[::1],) * 4, types.int64), Rows)
BAND, TILE, KEY_TILE = map(numba.from_dtype, (_plan.BANDS, _plan.TILES, _plan.KEY_TILES))


@inline
def axis_length(group, length, step):
    """Positions that are equal to ``group`` modulo ``step``."""
    return (length - group + step - 1) // step


@inline
def axis_variant(group, length, step):
    """Index of that axis in a plan."""
    return 0 if group < length % step else 1


@inline
def axis(plan, group, length, step):
    """That axis."""
    at = axis_variant(group, length, step)
    size = axis_length(group, length, step)
    return Rows(plan[0][at], plan[1][at], plan[2][at], plan[3][at], size)


@inline
def origin(tensor, b, h, z, y, x):
    """Address of a position of a head."""
    place = tensor.address + b * tensor.batch + h * tensor.head
    return place + z * tensor.z + y * tensor.y + x * tensor.x


@part
def softmax(s, planes, plane, count, row, slots, step, bias, bias_plane, bias_row, extra, extras,
            scale: types.float32, inverse, lse):  # fmt: skip
    """Turns the logits of 16 queries into powers of 2 relative to the largest.

    Logits are ``planes`` times ``count`` times ``slots`` vectors, the last ``step`` bytes apart,
    with their bias (0 for none) likewise, and ``extras`` more at ``extra``. ``scale`` and bias are
    those of logits to the base 2. Writes the inverse of the sum, and the natural log-sum-exp.
    """
    factor = broadcast(scale)
    top = broadcast(-INFINITY)
    for z in range(planes):
        for r in range(count):
            place = s + z * plane + r * row
            if bias == 0:
                for i in range(slots):
                    top = maximum(top, load(place + i * step) * factor)
            else:
                offset = bias + z * bias_plane + r * bias_row
                for i in range(slots):
                    x = fma(load(place + i * step), factor, load(offset + i * step))
                    top = maximum(top, x)
    for i in range(extras):
        top = maximum(top, load(extra + i * step) * factor)
    shift = broadcast(ZERO) - top
    total = broadcast(ZERO)
    for z in range(planes):
        for r in range(count):
            place = s + z * plane + r * row
            offset = bias + z * bias_plane + r * bias_row
            for i in range(slots):
                x = shift
                if bias != 0:
                    x = load(offset + i * step) + x
                x = exp2(fma(load(place + i * step), factor, x))
                total = total + x
                store(place + i * step, x)
    for i in range(extras):
        x = exp2(fma(load(extra + i * step), factor, shift))
        total = total + x
        store(extra + i * step, x)
    store(inverse, broadcast(ONE) / total)
    store(lse, fma(top, broadcast(LN2), log(total)))


@part
def softmax_gradient(s, change, planes, plane, count, row, slots, step, bias, dbias, bias_plane,
                     bias_row, extra, extras, scale: types.float32, lse):  # fmt: skip
    """Turns the logits of 16 queries into probabilities, and gradients of those into of logits.

    Gradients are ``change`` bytes behind the logits. The gradients of logits are also added to
    those of the bias at ``dbias``, 0 for none. See ``softmax``.
    """
    factor = broadcast(scale)
    shift = broadcast(ZERO) - load(lse) * broadcast(LOG2E)
    delta = broadcast(ZERO)
    for z in range(planes):
        for r in range(count):
            place = s + z * plane + r * row
            offset = bias + z * bias_plane + r * bias_row
            for i in range(slots):
                x = shift
                if bias != 0:
                    x = load(offset + i * step) + x
                x = exp2(fma(load(place + i * step), factor, x))
                delta = fma(x, load(place + change + i * step), delta)
                store(place + i * step, x)
    for i in range(extras):
        x = exp2(fma(load(extra + i * step), factor, shift))
        delta = fma(x, load(extra + change + i * step), delta)
        store(extra + i * step, x)
    for z in range(planes):
        for r in range(count):
            place = s + z * plane + r * row
            offset = dbias + z * bias_plane + r * bias_row
            for i in range(slots):
                at = place + i * step
                x = load(at) * (load(at + change) - delta)
                store(at + change, x)
                if dbias != 0:
                    store(offset + i * step, load(offset + i * step) + x)
    for i in range(extras):
        at = extra + i * step
        store(at + change, load(at) * (load(at + change) - delta))
