"""Window attention on the CPU: one window and head at a time, in the first-level cache."""

import numpy as np
import torch

from .._blocks import (
    DTYPE_CODES,
    add,
    clear,
    copy_in,
    copy_in_transposed,
    copy_out,
    exponentials,
    multiply,
    padded,
    read,
    scale_rows,
    softmax,
    softmax_gradient,
)
from .._jit import inline, jit
from .._simd import LANES, load, put, store
from .._threads import parallel_for

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
GROUPS = 8
"""Sums of the bias gradient that are kept apart, so that their order does not depend on threads."""


def forward(q, k, v, bias, window, shift, scale):
    """Output (B, H, W, heads, dim) and log-sum-exp of the logits (B, heads, H, W)."""
    q, k, v, bias = _with_contiguous_rows(q, k, v, bias)
    batch, height, width, heads, _ = q.shape
    out = torch.empty(v.shape, dtype=v.dtype)
    lse = torch.empty(batch, heads, height, width)
    parallel_for(
        _forward_windows,
        batch * _windows(q, window) * heads,
        *_geometry(q, window, shift, scale),
        *_layout(q),
        *_layout(k),
        *_layout(v),
        *_bias_layout(bias),
        *_layout(out),
        lse.data_ptr(),
    )
    return out, lse


def backward(grad, q, k, v, bias, out, lse, window, shift, scale):
    """Gradients of q, k, v and bias, the last one empty where there is no bias."""
    grad, q, k, v, bias = _with_contiguous_rows(grad, q, k, v, bias)
    batch, _, _, heads, _ = q.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    area = window[0] * window[1]
    groups = min(batch * _windows(q, window), GROUPS)
    dbias = torch.zeros(groups, heads, area, padded.py_func(area)) if bias is not None else None
    parallel_for(
        _backward_windows,
        groups * heads,
        groups,
        *_geometry(q, window, shift, scale),
        *_layout(q),
        *_layout(k),
        *_layout(v),
        *_bias_layout(bias),
        *_layout(out),
        lse.data_ptr(),
        *_layout(grad),
        *_layout(dq),
        *_layout(dk),
        *_layout(dv),
        0 if dbias is None else dbias.data_ptr(),
    )
    if dbias is None:
        return dq, dk, dv, q.new_empty(0)
    return dq, dk, dv, dbias.sum(0)[..., :area].to(bias.dtype)


def _with_contiguous_rows(*tensors):
    return tuple(x if x is None or x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _windows(q, window):
    return -(-q.shape[1] // window[0]) * -(-q.shape[2] // window[1])


def _geometry(q, window, shift, scale):
    return (*q.shape, *window, *shift, np.float32(scale))


def _layout(x):
    """Code of the dtype, address, and strides in bytes of batch, rows, columns and heads."""
    size = x.element_size()
    return DTYPE_CODES[x.dtype], x.data_ptr(), *(stride * size for stride in x.stride()[:4])


def _bias_layout(bias):
    if bias is None:
        return 0, 0, 0, 0
    size = bias.element_size()
    return DTYPE_CODES[bias.dtype], bias.data_ptr(), bias.stride(0) * size, bias.stride(1) * size


@inline
def _origin(position, size, offset, length):
    """Where on the map a row (or column) of the shifted, filled-up map comes from; -1 for padding."""
    whole = (length + size - 1) // size * size
    source = (position + offset) % whole
    return source if source < length else -1


@jit
def _gather(layout, top, left, geometry, target, target_row):
    """Copies a window's tokens (tokens, dim) to floats; padding is zeros."""
    dtype, address, _, row, column, _ = layout
    height, width, dim, rows, columns, shift_y, shift_x = geometry
    clear(target, rows * columns * target_row // 4)
    for i in range(rows):
        y = _origin(top + i, rows, shift_y, height)
        if y < 0:
            continue
        j = 0
        while j < columns:
            x = _origin(left + j, columns, shift_x, width)
            run = 1
            while x >= 0 and j + run < columns:
                if _origin(left + j + run, columns, shift_x, width) != x + run:
                    break
                run += 1
            if x >= 0:
                copy_in(
                    dtype,
                    address + y * row + x * column,
                    column,
                    run,
                    dim,
                    target + (i * columns + j) * target_row,
                    target_row,
                )
            j += run
