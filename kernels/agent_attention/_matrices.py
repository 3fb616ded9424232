"""What passes over tokens and biases are both made of: matrices, their products and sums."""

import numpy as np
import torch

from .._blocks import DTYPE_CODES, multiply, write
from .._jit import inline, jit
from .._threads import parallel_for
from .._vectors import LANES, load_lanes

FLOAT = 0
"""Code of float32 in ``DTYPE_CODES``, that of scratch memory."""
ONE = np.float32(1)


def empty_floats(*shape):
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def layout(x):
    """Code of the dtype, address, and strides in bytes of all dimensions but the last."""
    size = x.element_size()
    return DTYPE_CODES[x.dtype], x.data_ptr(), *(stride * size for stride in x.stride()[:-1])


def sum_of_parts(sums, like):
    """Adds up the first dimension, in order; a tensor of another's shape and dtype."""
    if len(sums) == 0:
        return like.new_zeros(like.shape)
    out = like.new_empty(like.shape)
    columns = like.shape[-1]
    if out.numel() > 0:
        parallel_for(
            _add_up,
            out.numel() // columns,
            len(sums),
            sums.data_ptr(),
            4 * sums.stride(0),
            4 * sums.stride(-2),
            columns,
            DTYPE_CODES[out.dtype],
            out.data_ptr(),
            min_chunk=max(1, 65536 // columns),
        )
    return out


@jit
def _add_up(begin, end, parts, source, source_part, source_row, columns, dtype, target):
    size = 4 if dtype == FLOAT else 2
    for i in range(begin, end):
        for j in range(0, columns, LANES):
            place = source + i * source_row + 4 * j
            total = load_lanes(place, columns - j)
            for part in range(1, parts):
                total = total + load_lanes(place + part * source_part, columns - j)
            write(dtype, target + (i * columns + j) * size, total, columns - j)


@inline
def product(rows, vectors, depth, a, b, c, scale, accumulate):
    """``multiply`` with (address, row, step) of A, and (address, row) of B and of C."""
    multiply(rows, vectors, depth, a[0], a[1], a[2], b[0], b[1], c[0], c[1], scale, accumulate)
