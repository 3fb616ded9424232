"""The grouped value projection of what was pooled, on the CPU: a query of all items at a time.

A query has a few rows of the weight, and an item one row that they are multiplied by: products of
a batch of small matrices, most of whose time is that in which the weight comes from memory. It is
read once.
"""

import numpy as np
import torch

from .._blocks import copy_in, copy_out, multiply, padded
from .._jit import inline, integers, jit, part
from .._layouts import layout, with_contiguous_rows
from .._memory import empty
from .._threads import parallel_for
from .._vectors import F32, LANES
from ._matrices import FLOAT, copy_tiles, find_rows, in_whole_tiles, inner_products, tiled

__all__ = ["project", "project_gradient"]

ONE = np.float32(1)
VECTOR = LANES * F32
LEFT, ROWS = integers(5), integers(3)
TASKS = 16
"""Pieces of work to have at least, where queries have enough rows or columns to share out."""
FEWEST = 8
"""Rows of the weight that a piece has at least."""
ITEMS = 32
"""Items of the batch to multiply by the rows of a piece at a time."""


def project(pooled: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each query's rows of a weight (D_out, E) times what it pooled, (B, M, E): (B, D_out)."""
    pooled, weight = with_contiguous_rows(pooled, weight)
    batch, count, wide = pooled.shape
    own = len(weight) // count
    out = torch.empty(batch, len(weight), dtype=pooled.dtype)
    parts = max(min(-(-TASKS // count), own // FEWEST), 1)
    rows, items = in_whole_tiles(-(-own // parts)), in_whole_tiles(min(batch, ITEMS))
    parallel_for(
        _project_queries,
        count * parts,
        parts,
        (batch, count, wide, own),
        layout(pooled, 2),
        layout(weight, 1),
        layout(out, 1),
        scratch=F32 * ((rows + items) * (-(-wide // LANES) * LANES) + items * (rows + LANES)),
    )
    return out


def project_gradient(
    grad: torch.Tensor, pooled: torch.Tensor, weight: torch.Tensor, needs: tuple[bool, bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``project`` for what was pooled and for the weight, where needed."""
    grad, pooled, weight = with_contiguous_rows(grad, pooled, weight)
    batch, count, wide = pooled.shape
    own = len(weight) // count
    need_pooled, need_weight = needs
    dpooled = empty(*(pooled.shape if need_pooled else [0]), dtype=pooled.dtype)
    dweight = empty(*(weight.shape if need_weight else [0]), dtype=weight.dtype)
    vectors = -(-wide // LANES)
    parts = max(min(-(-TASKS // count), vectors), 1)
    # An odd number of vectors, so that rows do not crowd the cache.
    line = (-(-vectors // parts) | 1) * VECTOR
    parallel_for(
        _project_gradient_queries,
        count * parts,
        parts,
        (batch, count, wide, own, line),
        layout(grad, 1),
        layout(pooled, 2),
        layout(weight, 1),
        layout(dpooled, 2) if need_pooled else (FLOAT, 0, 0, 0),
        layout(dweight, 1) if need_weight else (FLOAT, 0, 0),
        scratch=2 * max(batch, own) * line + batch * (-(-own // LANES) * LANES) * F32,
    )
    return dpooled, dweight


@inline
def _size(code):
    """Bytes of an element."""
    return 4 if code == FLOAT else 2


@part
def _multiply_columns(left: LEFT, right: ROWS, columns, out: ROWS, inputs, results, line):
    """Some columns of a product of floats with rows of any dtype, by way of scratch memory."""
    a, a_row, a_step, rows, depth = left
    copy_in(right[0], right[1], right[2], depth, columns, inputs, line)
    vectors = padded(columns) // LANES
    multiply(rows, vectors, depth, a, a_row, a_step, inputs, line, results, line, ONE, False)
    copy_out(out[0], results, line, rows, columns, out[1], out[2])


@jit
def _project_queries(begin, end, scratch, parts, sizes, pooled, weight, out):
    batch, count, wide, own = sizes
    code, address, item_row, row = pooled
    depth, size = padded(wide), _size(out[0])
    most = tiled(min(batch, ITEMS))
    items = scratch
    copies = items + most * depth * F32
    products = copies + tiled((own + parts - 1) // parts) * depth * F32
    for task in range(begin, end):
        m, part = task // parts, task % parts
        start = own * part // parts
        number = own * (part + 1) // parts - start
        start += m * own
        place, place_row, whole = find_rows(
            (weight[0], weight[1], 0, weight[2]), 0, start, number, wide, copies
        )
        for first in range(0, batch, ITEMS):
            some = min(ITEMS, batch - first)
            copy_tiles((code, address, row, item_row), m, first, some, wide, items)
            products_row = padded(whole) * F32
            inner_products(
                tiled(some),
                whole,
                depth,
                items,
                depth * F32,
                place,
                place_row,
                products,
                products_row,
            )
            target = out[1] + first * out[2] + start * size
            copy_out(out[0], products, products_row, some, number, target, out[2])


@jit
def _project_gradient_queries(
    begin, end, scratch, parts, sizes, grad, pooled, weight, dpooled, dweight
):
    batch, count, wide, own, line = sizes
    vectors, grad_line = (wide + LANES - 1) // LANES, padded(own) * F32
    inputs, results = scratch, scratch + max(batch, own) * line
    slopes = results + max(batch, own) * line
    for task in range(begin, end):
        m, part = task // parts, task % parts
        start = vectors * part // parts * LANES
        columns = min(vectors * (part + 1) // parts * LANES, wide) - start
        top = m * own
        source = grad[1] + top * _size(grad[0])
        copy_in(grad[0], source, grad[2], batch, own, slopes, grad_line)
        if dpooled[1] > 0:
            source = weight[1] + top * weight[2] + start * _size(weight[0])
            target = dpooled[1] + m * dpooled[3] + start * _size(dpooled[0])
            left = (slopes, grad_line, F32, batch, own)
            right, out = (weight[0], source, weight[2]), (dpooled[0], target, dpooled[2])
            _multiply_columns(left, right, columns, out, inputs, results, line)
        if dweight[1] > 0:
            source = pooled[1] + m * pooled[3] + start * _size(pooled[0])
            target = dweight[1] + top * dweight[2] + start * _size(dweight[0])
            left = (slopes, F32, grad_line, own, batch)
            right, out = (pooled[0], source, pooled[2]), (dweight[0], target, dweight[2])
            _multiply_columns(left, right, columns, out, inputs, results, line)
