"""Depthwise convolution on the CPU: channels in lanes, tiles of columns in registers.

Arithmetic is in single precision, which tensors of 16 bits are converted to and from beforehand.
Channels go in vectors of 16. Where they are no multiple, the last vector begins earlier and some
channels are computed twice, with the same result.
"""

import numpy as np

from .._jit import inline, jit
from .._memory import empty
from .._threads import parallel_for
from .._vectors import LANES, broadcast, fma, lanes_below, load, prefetch, select, store

COLUMNS = 4
"""Columns of a register tile."""
PARTS = 16
"""Sums that the gradient of weights is made of, whatever the threads, for results must not depend
on them."""
ROWS = 4
"""Fewest rows of a map that are worth a call."""


def forward(x, weight, bias, residual):
    """The convolved map, (B, H, W, C), plus the residual where there is one."""
    return _run(x, _taps(weight), bias, residual, weight.shape[2:]).to(x.dtype)


def backward(grad, x, weight, needs):
    """Gradients of x, weight and bias; empty where they are not needed: of x, and of the others."""
    kernel = weight.shape[2:]
    need_x, need_weight = needs
    dx = x.new_empty(0)
    if need_x:
        dx = _run(grad, _taps(weight.flip(2, 3)), None, None, kernel).to(x.dtype)
    if not need_weight:
        return dx, weight.new_empty(0), weight.new_empty(0)
    grad, x = _as_rows_of_floats(grad), _as_rows_of_floats(x)
    batch, height, width, channels = x.shape
    count = kernel[0] * kernel[1]
    sums = grad.new_zeros(PARTS, count + 1, channels)
    parallel_for(
        _add_weight_gradients,
        PARTS,
        (batch, height, width, channels, *kernel),
        _layout(x),
        _layout(grad),
        sums.data_ptr(),
    )
    sums = sums.sum(0).to(weight.dtype)
    return dx, sums[:count].t().contiguous().view(weight.shape), sums[count].clone()


def _run(x, taps, bias, residual, kernel):
    x = _as_rows_of_floats(x)
    residual = None if residual is None else _as_rows_of_floats(residual)
    batch, height, width, channels = x.shape
    out = empty(*x.shape)
    bias = x.new_zeros(channels) if bias is None else bias.float().contiguous()
    parallel_for(
        _convolve,
        batch * height,
        (batch, height, width, channels, *kernel),
        _layout(x),
        (0, 0, 0, 0) if residual is None else _layout(residual),
        _layout(out),
        taps.data_ptr(),
        bias.data_ptr(),
        min_chunk=ROWS,
    )
    return out


def _taps(weight):
    """Weights (h * w, C) of all channels at each place of the kernel."""
    return weight.float().flatten(1).t().contiguous()


def _as_rows_of_floats(x):
    x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _layout(x):
    """Address, and strides in bytes of batch, rows and columns."""
    return x.data_ptr(), *(4 * stride for stride in x.stride()[:3])


@inline
def _at(x, sample, row, column):
    return x[0] + sample * x[1] + row * x[2] + column * x[3]


@inline
def _start_of_lanes(c, channels):
    """First channel of a vector from channel ``c`` on; the last vector begins earlier."""
    return min(c, channels - LANES)


@inline
def _row(sizes, x, residual, out, taps, bias, sample, row, kernel_width):
    """A row of the result; ``kernel_width`` is a constant where products are to be unrolled."""
    _, height, width, channels, kernel_height, _ = sizes
    up, left = kernel_height // 2, kernel_width // 2
    low, high = max(up - row, 0), min(kernel_height, height + up - row)
    tap_step, tap_row = 4 * channels, 4 * channels * kernel_width
    x_row, x_step, out_step, more_step = x[2], x[3], out[3], residual[3]
    taps += low * tap_row
    # From the first row to the one that the next row of results needs first.
    ahead = x_row * (kernel_height - low if row + up + 1 < height else high - low - 1)
    j = 0
    while j < width:
        tile = j >= left and j + COLUMNS + left <= width
        first, last = max(left - j, 0), min(kernel_width, width + left - j)
        source = _at(x, sample, row + low - up, j - left)
        target, more = _at(out, sample, row, j), _at(residual, sample, row, j)
        for at in range(0, channels, LANES):
            offset = 4 * _start_of_lanes(at, channels)
            place, tap = source + offset, taps + offset
            a = load(bias + offset)
            if tile:
                b = c = d = a
                if residual[0] != 0:
                    a = a + load(more + offset)
                    b = b + load(more + more_step + offset)
                    c = c + load(more + 2 * more_step + offset)
                    d = d + load(more + 3 * more_step + offset)
                for i in range(COLUMNS):
                    prefetch(place + ahead + (left + i) * x_step)
                for _ in range(low, high):
                    for i in range(kernel_width):
                        weight, value = load(tap + i * tap_step), place + i * x_step
                        a = fma(weight, load(value), a)
                        b = fma(weight, load(value + x_step), b)
                        c = fma(weight, load(value + 2 * x_step), c)
                        d = fma(weight, load(value + 3 * x_step), d)
                    place += x_row
                    tap += tap_row
                store(target + out_step + offset, b)
                store(target + 2 * out_step + offset, c)
                store(target + 3 * out_step + offset, d)
            else:
                if residual[0] != 0:
                    a = a + load(more + offset)
                for _ in range(low, high):
                    for i in range(first, last):
                        a = fma(load(tap + i * tap_step), load(place + i * x_step), a)
                    place += x_row
                    tap += tap_row
            store(target + offset, a)
        j += COLUMNS if tile else 1


@jit
def _convolve(begin, end, sizes, x, residual, out, taps, bias):
    """Rows of the results of all samples."""
    for task in range(begin, end):
        sample, row = divmod(task, sizes[1])
        if sizes[5] == 3:
            _row(sizes, x, residual, out, taps, bias, sample, row, 3)
        elif sizes[5] == 5:
            _row(sizes, x, residual, out, taps, bias, sample, row, 5)
        else:
            _row(sizes, x, residual, out, taps, bias, sample, row, sizes[5])


@jit
def _dot(x, step, grad, grad_step, count):
    """Sum of products of two rows of vectors, lane by lane."""
    a = b = c = d = broadcast(np.float32(0))
    whole = count // 4 * 4
    for _ in range(0, whole, 4):
        a = fma(load(x), load(grad), a)
        b = fma(load(x + step), load(grad + grad_step), b)
        c = fma(load(x + 2 * step), load(grad + 2 * grad_step), c)
        d = fma(load(x + 3 * step), load(grad + 3 * grad_step), d)
        x += 4 * step
        grad += 4 * grad_step
    for _ in range(whole, count):
        a = fma(load(x), load(grad), a)
        x += step
        grad += grad_step
    return (a + b) + (c + d)


@jit
def _add_weight_gradients(begin, end, sizes, x, grad, sums):
    """Gradients (h * w, C) of weights and, behind them, of the bias, by a share of all rows."""
    batch, height, width, channels, kernel_height, kernel_width = sizes
    up, left = kernel_height // 2, kernel_width // 2
    size = 4 * channels * (kernel_height * kernel_width + 1)
    zero = broadcast(np.float32(0))
    for part in range(begin, end):
        first, last = part * batch * height // PARTS, (part + 1) * batch * height // PARTS
        for task in range(first, last):
            sample, row = divmod(task, height)
            for at in range(0, channels, LANES):
                start = _start_of_lanes(at, channels)
                offset, twice = 4 * start, lanes_below(at - start)
                target = sums + part * size + offset
                slope = _at(grad, sample, row, 0) + offset
                for y in range(kernel_height):
                    if 0 <= row + y - up < height:
                        source = _at(x, sample, row + y - up, 0) + offset
                        for i in range(kernel_width):
                            low, high = max(left - i, 0), min(width, width + left - i)
                            place = target + 4 * channels * (y * kernel_width + i)
                            value = _dot(
                                *(source + (low + i - left) * x[3], x[3]),
                                *(slope + low * grad[3], grad[3]),
                                max(high - low, 0),
                            )
                            store(place, load(place) + select(twice, zero, value))
                total = zero
                for j in range(width):
                    total = total + load(slope + j * grad[3])
                place = target + size - 4 * channels
                store(place, load(place) + select(twice, zero, total))
