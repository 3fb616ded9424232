"""Efficient local attention on the CPU, some channels of one image at a time.

A chunk of channels that no group of the convolution or the normalisation leaves is summed, gated
and multiplied before the next one, so that x is still in the cache when it is read again. Where
the channels of a position are contiguous they are the lanes of vectors; elsewhere planes are worked
on as they are, or transposed where they are small.
"""

import math
from functools import lru_cache

import numpy as np
import torch

from .._blocks import (
    clear,
    copy_in,
    copy_in_transposed,
    copy_out,
    copy_out_transposed,
    padded,
)
from .._elements import store_as
from .._jit import inline, jit
from .._layouts import layout as tensor_layout
from .._memory import empty_like
from .._threads import parallel_for
from .._vectors import (
    F32,
    LANES,
    broadcast,
    exp,
    fma,
    get,
    load,
    load_lanes,
    maximum,
    reduce_add,
    store,
)
from . import _convolution, _maps
from ._convolution import convolve, convolve_gradient, pack, unpack
from ._maps import (
    divide,
    gate_lanes,
    gate_planes,
    sum_lanes,
    sum_lanes_gradient,
    sum_planes,
    sum_planes_gradient,
)
from ._rows import end_streams

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
VECTOR = LANES * F32
PLANES, SMALL_PLANES, CHANNELS = range(3)
"""What is contiguous: planes, of which small ones are transposed, or channels."""
SMALL = 100
"""Most positions of a small plane."""
CHUNK = 65536
"""Bytes of the planes of a chunk to have at least."""
CACHE = 2**25
"""Bytes of maps that do not stay in the cache: results are better written past it."""
TASKS = 16
"""Pieces of work to have at least, and sums of a weight's gradient to keep apart."""


def forward(x, conv, weight, bias, norm_groups, eps, save):
    """Output, and the strip means (B, H + W, C), empty unless they are to be saved."""
    batch, channels, height, width = x.shape
    out = empty_like(x)
    strips = torch.empty((batch, height + width, channels) if save else 0)
    source = _workable(x)
    target = _alike(out, source)
    plan, sizes = _plan(source, conv, norm_groups)
    parameters = [p.float().contiguous() for p in (conv, weight, bias)]
    parallel_for(
        _forward_chunks,
        plan[0] * plan[2],
        (batch, channels, height, width),
        plan,
        sizes,
        tensor_layout(source),
        tensor_layout(target),
        tuple(p.data_ptr() for p in parameters),
        np.float32(eps),
        strips.data_ptr() if save else 0,
        scratch=F32 * (2 * sizes[0] + sizes[1] + sizes[3] + sizes[4]),
    )
    if target is not out:
        out.copy_(target)
    return out, strips


def backward(grad, x, conv, weight, bias, strips, norm_groups, eps):
    """Gradients of x, the convolution's weight, and the normalisation's weight and bias."""
    batch, channels, height, width = x.shape
    dx = empty_like(x)
    source = _workable(x)
    grad = _alike(grad.to(x.dtype), source, copy=True)
    target = _alike(dx, source)
    plan, sizes = _plan(source, conv, norm_groups)
    parameters = [p.float().contiguous() for p in (conv, weight, bias)]
    sums = [torch.empty(plan[2], *p.shape) for p in parameters]
    parallel_for(
        _backward_chunks,
        plan[0] * plan[2],
        (batch, channels, height, width),
        plan,
        sizes,
        tensor_layout(source),
        tensor_layout(grad),
        tensor_layout(target),
        tuple(p.data_ptr() for p in parameters),
        np.float32(eps),
        strips.data_ptr(),
        tuple(p.data_ptr() for p in sums),
        scratch=F32 * (4 * sizes[0] + 2 * sizes[1] + sizes[2] + 2 * sizes[3] + sizes[4]),
    )
    if target is not dx:
        dx.copy_(target)
    sums = zip(sums, (conv, weight, bias), strict=True)
    return dx, *(d.sum(0).to(p.dtype) for d, p in sums)


def _by_channels(x):
    return x.stride(1) == 1 and (x.shape[1] > 1 or x.stride(3) > 1)


def _workable(x):
    """x, or a copy where neither images nor the channels of a position are contiguous."""
    return x if _by_channels(x) or x[0].is_contiguous() else x.contiguous()


def _alike(x, other, copy=False):
    """x where it is laid out as the other is, else an empty tensor or a copy that is."""
    if _by_channels(x) == _by_channels(other) and _workable(x) is x:
        return x
    new = torch.empty_like(other)
    return new.copy_(x) if copy else new


def _plan(x, conv, norm_groups):
    """How to share the work out, and what memory it takes; see ``_share_out`` and ``_sizes``."""
    return _plan_shape(x.shape, conv.shape, norm_groups, _by_channels(x), x.element_size())


@lru_cache(1024)
def _plan_shape(shape, weights, norm_groups, by_channels, element):
    plan = _share_out(shape, weights, norm_groups, by_channels, element)
    return plan, _sizes(shape, plan)


def _share_out(shape, weights, norm_groups, by_channels, element):
    """How the work is shared out.

    Chunks, channels of a chunk, and splits of the batch; width of a group, taps and sets of the
    convolution; width of a group of the normalisation; what is contiguous.
    """
    batch, channels, height, width = shape
    sets, _, group, taps = weights
    norm_width = channels // norm_groups
    unit = math.lcm(group, norm_width)
    units = channels // unit
    area = height * width
    if by_channels:
        contiguous = CHANNELS
        # What lies between the channels of a chunk would be fetched for nothing.
        least = max(channels * min(batch, 4) // 4, 4 * LANES)
    else:
        contiguous = SMALL_PLANES if area <= SMALL else PLANES
        least = max(min(CHUNK // (area * element), channels // TASKS), LANES)
    chunks = max(units // -(-least // unit), 1)
    per_chunk = -(-units // chunks)
    chunks = -(-units // per_chunk)
    splits = min(batch, -(-TASKS // chunks))
    return chunks, per_chunk * unit, splits, group, taps, sets, norm_width, contiguous


def _sizes(shape, plan):
    """Floats of a chunk's strips, packed weights, sums, transposed planes, and working memory.

    Sums are the gradients of the packed weights and of the normalisation's weight and bias, for
    each set of weights; and the statistics of both strips.
    """
    height, width = shape[2:]
    _, chunk, _, group, taps, sets, _, contiguous = plan
    wide = -(-chunk // LANES) * LANES
    packed = sets * _convolution.packed_size(chunk, group, taps)
    transposed = -(-height * width // LANES) * LANES * wide if contiguous == SMALL_PLANES else 0
    work = max(
        _convolution.work_size(chunk, group, taps, max(height, width)),
        _maps.work_size(chunk, height, width),
        2 * wide,
    )
    sums = packed + 2 * sets * wide + 4 * wide
    return wide * (height + width + 3 * (taps // 2) + LANES), packed, sums, transposed, work


@inline
def _arrange(height, width, taps):
    """Height and width, first row of either strip, and bytes of a block of strips.

    Strips have zeros on either side, and share those between them; beyond is room for whole
    vectors of positions.
    """
    pad = taps // 2
    rows = 3 * pad + height + width + LANES
    return height, width, pad, 2 * pad + height, rows * VECTOR


@inline
def _task(task, plan, batch, channels):
    """First channel and number of channels of a task, its split, and its items of the batch."""
    chunks, chunk, splits = plan[0], plan[1], plan[2]
    first, split = task % chunks * chunk, task // chunks
    items = batch * split // splits, batch * (split + 1) // splits
    return first, min(chunk, channels - first), split, items[0], items[1]


@jit
def _forward_chunks(begin, end, scratch, shape, plan, sizes, x, out, parameters, eps, saved):
    batch, channels, height, width = shape
    strip_size, packed, _, transposed, _ = sizes
    layout = _arrange(height, width, plan[4])
    area, wide = height * width, padded(plan[1]) * F32
    z = scratch
    y = z + strip_size * F32
    weights = y + strip_size * F32
    planes = weights + packed * F32
    work = planes + transposed * F32
    code = x[0]
    streams = code == FLOAT and 2 * batch * channels * area * F32 > CACHE
    size = 4 if code == FLOAT else 2
    form, out_form, copied = (code, x[4], x[5]), (code, out[4], out[5]), (FLOAT, width * wide, wide)
    clear(z, strip_size)
    for task in range(begin, end):
        first, count, _, low, high = _task(task, plan, batch, channels)
        _pack_sets(parameters[0], channels, first, count, plan, False, weights, packed, work)
        for b in range(low, high):
            source = x[1] + b * x[2] + first * x[3]
            target = out[1] + b * out[2] + first * out[3]
            if plan[7] == CHANNELS:
                sum_lanes(form, source, count, layout, z, work)
            elif plan[7] == PLANES:
                sum_planes(form, source, count, layout, z, work)
            else:
                copy_in_transposed(code, source, area * size, count, area, planes, wide)
                sum_lanes(copied, planes, count, layout, z, work)
            if saved > 0:
                place = saved + (b * (height + width) * channels + first) * F32
                _move_strips(z, count, layout, place, channels * F32, True)
            for s in range(2):
                _convolve_strip(z, s, count, layout, plan, weights, packed, False, work, y)
                _measure(y, s, count, layout, plan, eps, work)
                _activate(y, s, first, channels, count, layout, plan, parameters, work, y)
            if plan[7] == CHANNELS:
                gate_lanes(form, source, out_form, target, count, layout, y, 0, work, streams)
            elif plan[7] == PLANES:
                gate_planes(form, source, target, count, layout, y, 0, work, streams)
            else:
                gate_lanes(copied, planes, copied, planes, count, layout, y, 0, work, False)
                copy_out_transposed(code, planes, wide, count, area, target, area * size)
    end_streams()


@jit
def _backward_chunks(
    begin, end, scratch, shape, plan, sizes, x, grad, dx, parameters, eps, saved, gradients
):
    batch, channels, height, width = shape
    strip_size, packed, sums_size, transposed, _ = sizes
    layout = _arrange(height, width, plan[4])
    area, wide = height * width, padded(plan[1]) * F32
    z = scratch
    u, y, dy = z + strip_size * F32, z + 2 * strip_size * F32, z + 3 * strip_size * F32
    weights = z + 4 * strip_size * F32
    flipped = weights + packed * F32
    sums = flipped + packed * F32
    statistics = sums + (sums_size - 4 * padded(plan[1])) * F32
    planes = sums + sums_size * F32
    grad_planes = planes + transposed * F32
    work = grad_planes + transposed * F32
    code = x[0]
    streams = code == FLOAT and 3 * batch * channels * area * F32 > CACHE
    size = 4 if code == FLOAT else 2
    form, grad_form = (code, x[4], x[5]), (code, grad[4], grad[5])
    dx_form, copied = (code, dx[4], dx[5]), (FLOAT, width * wide, wide)
    clear(z, strip_size)
    clear(dy, strip_size)
    for task in range(begin, end):
        first, count, split, low, high = _task(task, plan, batch, channels)
        _pack_sets(parameters[0], channels, first, count, plan, False, weights, packed, work)
        _pack_sets(parameters[0], channels, first, count, plan, True, flipped, packed, work)
        clear(sums, sums_size)
        for b in range(low, high):
            source = x[1] + b * x[2] + first * x[3]
            upstream = grad[1] + b * grad[2] + first * grad[3]
            target = dx[1] + b * dx[2] + first * dx[3]
            place = saved + (b * (height + width) * channels + first) * F32
            _move_strips(z, count, layout, place, channels * F32, False)
            for s in range(2):
                measured = statistics + 2 * s * wide
                _convolve_strip(z, s, count, layout, plan, weights, packed, False, work, u)
                _measure(u, s, count, layout, plan, eps, measured)
                _activate(u, s, first, channels, count, layout, plan, parameters, measured, y)
            if plan[7] == CHANNELS:
                sum_lanes_gradient(form, source, grad_form, upstream, count, layout, y, dy, work)
            elif plan[7] == PLANES:
                sum_planes_gradient(form, source, upstream, count, layout, y, dy, work)
            else:
                copy_in_transposed(code, source, area * size, count, area, planes, wide)
                copy_in_transposed(code, upstream, area * size, count, area, grad_planes, wide)
                sum_lanes_gradient(copied, planes, copied, grad_planes, count, layout, y, dy, work)
            for s in range(2):
                measured = statistics + 2 * s * wide
                _activate_gradient(
                    u,
                    y,
                    s,
                    first,
                    channels,
                    count,
                    layout,
                    plan,
                    parameters,
                    measured,
                    sums + packed * F32,
                    work,
                    dy,
                )
                _convolve_strip_gradient(z, dy, s, count, layout, plan, sums, packed, work)
                # What was convolved is not needed any more; its place takes the means' gradients.
                _convolve_strip(dy, s, count, layout, plan, flipped, packed, True, work, u)
            divide(u, count, layout)
            if plan[7] == CHANNELS:
                gate_lanes(grad_form, upstream, dx_form, target, count, layout, y, u, work, streams)
            elif plan[7] == PLANES:
                gate_planes(form, upstream, target, count, layout, y, u, work, streams)
            else:
                gate_lanes(
                    copied, grad_planes, copied, grad_planes, count, layout, y, u, work, False
                )
                copy_out_transposed(code, grad_planes, wide, count, area, target, area * size)
        _write_sums(gradients, channels, first, count, split, plan, packed, sums)
    end_streams()


@inline
def _set_of(plan, s):
    """Which of the sets of weights is a strip's."""
    return s % plan[5]


@inline
def _strip(layout, s):
    """First row and length of the H strip (0) or the W strip (1)."""
    return layout[2 + s], layout[s]


@inline
def _pack_sets(conv, channels, first, count, plan, flipped, target, packed, work):
    _, _, _, group, taps, sets, _, _ = plan
    for s in range(sets):
        source = conv + (s * channels + first) * group * taps * F32
        pack(source, count, group, taps, flipped, target + s * packed // sets * F32, work)


@inline
def _convolve_strip(x, s, count, layout, plan, weights, packed, flipped, work, y):
    _, _, _, group, taps, sets, _, _ = plan
    start, length = _strip(layout, s)
    kernel = weights + _set_of(plan, s) * packed // sets * F32, group, taps
    convolve(x, start, length, count, layout[4], kernel, flipped, work, y)


@inline
def _convolve_strip_gradient(x, dy, s, count, layout, plan, sums, packed, work):
    _, _, _, group, taps, sets, _, _ = plan
    start, length = _strip(layout, s)
    kernel = sums + _set_of(plan, s) * packed // sets * F32, group, taps
    convolve_gradient(x, dy, start, length, count, layout[4], kernel, work)


@jit
def _move_strips(z, count, layout, saved, row, saving):
    """Copies both strips of a chunk to rows of all channels, or back."""
    for n in range(0, count, LANES):
        place, target = z + n // LANES * layout[4], saved + n * F32
        lanes = min(count - n, LANES)
        for s in range(2):
            start, length = _strip(layout, s)
            if saving:
                copy_out(FLOAT, place + start * VECTOR, VECTOR, length, lanes, target, row)
            else:
                copy_in(FLOAT, target, row, length, lanes, place + start * VECTOR, VECTOR)
            target += length * row


@jit
def _measure(u, s, count, layout, plan, eps, statistics):
    """Mean and inverse deviation of each channel's group in a strip, a row of channels each."""
    start, length = _strip(layout, s)
    column, norm_width = layout[4], plan[6]
    mean, deviation = statistics, statistics + padded(plan[1]) * F32
    factor = np.float32(1 / (norm_width * length))
    for n in range((count + LANES - 1) // LANES):
        place = u + n * column + start * VECTOR
        total = broadcast(np.float32(0))
        for i in range(length):
            total = total + load(place + i * VECTOR)
        store(mean + n * VECTOR, total)
    _average(mean, count, norm_width, factor)
    for n in range((count + LANES - 1) // LANES):
        place = u + n * column + start * VECTOR
        center = load(mean + n * VECTOR)
        total = broadcast(np.float32(0))
        for i in range(length):
            offset = load(place + i * VECTOR) - center
            total = fma(offset, offset, total)
        store(deviation + n * VECTOR, total)
    _average(deviation, count, norm_width, factor)
    for first in range(0, count, norm_width):
        place = deviation + first * F32
        _fill(place, norm_width, np.float32(1 / np.sqrt(get(place) + eps)))


@jit
def _average(x, count, size, factor):
    """Replaces each channel's sum by that of its group times a factor."""
    for first in range(0, count, size):
        place = x + first * F32
        total = broadcast(np.float32(0))
        for i in range(0, size, LANES):
            total = total + load_lanes(place + i * F32, size - i)
        _fill(place, size, np.float32(reduce_add(total) * factor))


@inline
def _fill(x, size, value):
    values = broadcast(value)
    for i in range(0, size, LANES):
        store_as(FLOAT, x + i * F32, values, size - i)


@jit
def _activate(u, s, first, channels, count, layout, plan, parameters, statistics, y):
    """Sigmoid of a normalised strip."""
    start, length = _strip(layout, s)
    mean, deviation = statistics, statistics + padded(plan[1]) * F32
    shift = (_set_of(plan, s) * channels + first) * F32
    zero, one = broadcast(np.float32(0)), broadcast(np.float32(1))
    lowest = broadcast(np.float32(-87))
    for n in range(0, count, LANES):
        place = n // LANES * layout[4] + start * VECTOR
        weight = load_lanes(parameters[1] + shift + n * F32, count - n)
        bias = load_lanes(parameters[2] + shift + n * F32, count - n)
        scale = weight * load(deviation + n * F32)
        offset = bias - load(mean + n * F32) * scale
        for i in range(length):
            # The bound keeps the exponential finite, and NaN what it is.
            value = maximum(lowest, fma(load(u + place + i * VECTOR), scale, offset))
            store(y + place + i * VECTOR, one / (one + exp(zero - value)))


@jit
def _activate_gradient(
    u, y, s, first, channels, count, layout, plan, parameters, statistics, sums, work, dy
):
    """Turns gradients of a strip's gates to those of the convolved strip.

    Adds to the gradients of the normalisation's weight and bias, two rows of channels a set.
    """
    start, length = _strip(layout, s)
    norm_width, wide = plan[6], padded(plan[1]) * F32
    mean, deviation = statistics, statistics + wide
    firsts, seconds = work, work + wide
    kind = _set_of(plan, s)
    weights = parameters[1] + (kind * channels + first) * F32
    weight_sums, bias_sums = sums + 2 * kind * wide, sums + (2 * kind + 1) * wide
    zero, one = broadcast(np.float32(0)), broadcast(np.float32(1))
    for n in range(0, count, LANES):
        place = n // LANES * layout[4] + start * VECTOR
        center, scale = load(mean + n * F32), load(deviation + n * F32)
        a, b = zero, zero
        for i in range(length):
            gate = load(y + place + i * VECTOR)
            slope = load(dy + place + i * VECTOR) * (gate * (one - gate))
            store(dy + place + i * VECTOR, slope)
            a = a + slope
            b = fma(slope, (load(u + place + i * VECTOR) - center) * scale, b)
        store(weight_sums + n * F32, load(weight_sums + n * F32) + b)
        store(bias_sums + n * F32, load(bias_sums + n * F32) + a)
        weight = load_lanes(weights + n * F32, count - n)
        store(firsts + n * F32, a * weight)
        store(seconds + n * F32, b * weight)
    factor = np.float32(1 / (norm_width * length))
    _average(firsts, count, norm_width, factor)
    _average(seconds, count, norm_width, factor)
    for n in range(0, count, LANES):
        place = n // LANES * layout[4] + start * VECTOR
        center, scale = load(mean + n * F32), load(deviation + n * F32)
        weight = load_lanes(weights + n * F32, count - n)
        a, b = load(firsts + n * F32), load(seconds + n * F32)
        for i in range(length):
            value = (load(u + place + i * VECTOR) - center) * scale
            slope = weight * load(dy + place + i * VECTOR) - a
            store(dy + place + i * VECTOR, scale * (slope - value * b))


@inline
def _write_sums(gradients, channels, first, count, split, plan, packed, sums):
    """Writes what a task has summed."""
    _, chunk, _, group, taps, sets, _, _ = plan
    conv, weight, bias = gradients
    wide = padded(chunk) * F32
    for s in range(sets):
        start = (split * sets + s) * channels + first
        source = sums + s * packed // sets * F32
        unpack(source, count, group, taps, conv + start * group * taps * F32)
        source = sums + packed * F32 + 2 * s * wide
        copy_out(FLOAT, source, 0, 1, count, weight + start * F32, 0)
        copy_out(FLOAT, source + wide, 0, 1, count, bias + start * F32, 0)
