"""Neighborhood attention on the CPU: which way suits a map, and what it takes and gives."""

import math

import numpy as np
import torch

from .._layouts import layout, with_contiguous_rows
from .._memory import empty
from .._packing import empty_each
from .._threads import CHUNKS_PER_THREAD, parallel_for
from . import _dense, _plan, _slide
from ._maps import Geometry, Tensor
from ._scratch import scratch

MOST_DENSE = 512
"""Most positions of a group that are all multiplied with all."""


def forward(q, k, v, rpb, extra_k, extra_v, kernel, dilation, stride, causal, scale):
    """Output (B, *spatial, heads, dim) and log-sum-exp of the logits (B, heads, *spatial)."""
    q, k, v, extra_k, extra_v = with_contiguous_rows(q, k, v, extra_k, extra_v)
    out = empty(*v.shape, dtype=v.dtype)
    lse = q.new_empty(q.shape[0], q.shape[-2], *q.shape[1:-2], dtype=torch.float32)
    if q.numel() == 0:
        return out, lse
    depth, height, width = rules = _rules(q, kernel, dilation, stride, causal)
    g = _geometry(q, rules, extra_k)
    groups = g.heads * g.batch * math.prod(dilation)
    maps = (*map(_layout, (q, k, v, out)), lse.data_ptr(), _table(rpb))
    extras = map(_layout, (extra_k, extra_v))
    rows = (tuple(_plan.rows(*depth)), tuple(_plan.rows(*height)))
    if _is_dense(rules):
        w = _dense.scratch(_positions(rules), g.dim, g.extra, False)
        across = tuple(_plan.rows(*width))
        kernel, call = _dense.forward, (*maps, *extras, *rows, across)
    else:
        w = scratch(rules, g.dim, g.extra, rpb is not None, False)
        columns = _plan.columns(*width, False)
        groups *= columns.bands.shape[1]
        # Where there are few heads, their rows are shared out.
        shares = -(-CHUNKS_PER_THREAD * torch.get_num_threads() // groups)
        shares = min(shares, _plan.count_blocks(depth, height))
        groups *= shares
        kernel = _slide.forward
        call = (*maps, *extras, *rows, tuple(columns), shares)
    parallel_for(kernel, groups, g, w, np.float32(scale), *call, scratch=w.size)
    return out, lse


def backward(
    grad,
    q,
    k,
    v,
    rpb,
    extra_k,
    extra_v,
    out,
    lse,
    kernel,
    dilation,
    stride,
    causal,
    scale,
    allocate=empty_each,
):
    """Gradients of q, k, v, rpb, extra_k and extra_v; empty for those that are None.

    Those of q, k and v are in what ``allocate`` makes for them.
    """
    grad, q, k, v, extra_k, extra_v = with_contiguous_rows(grad, q, k, v, extra_k, extra_v)
    dq, dk, dv = allocate(q, k, v)
    none = q.new_empty(0)
    if q.numel() == 0:
        rest = (none if x is None else torch.zeros_like(x) for x in (rpb, extra_k, extra_v))
        return dq, dk, dv, *rest
    depth, height, width = rules = _rules(q, kernel, dilation, stride, causal)
    g = _geometry(q, rules, extra_k)
    groups = g.heads * g.batch * math.prod(dilation)
    table = _table(rpb)
    maps = (
        *map(_layout, (grad, q, k, v)),
        lse.data_ptr(),
        table,
        *map(_layout, (extra_k, extra_v)),
    )
    grads = tuple(map(_layout, (dq, dk, dv)))
    rows = (tuple(_plan.rows(*depth)), tuple(_plan.rows(*height)))
    dense = _is_dense(rules)
    if dense:
        w = _dense.scratch(_positions(rules), g.dim, g.extra, True)
        across = tuple(_plan.rows(*width))
        kernel = _dense.backward
        tasks = g.heads * -(-groups // g.heads // _dense.UNIT)
    else:
        w = scratch(rules, g.dim, g.extra, rpb is not None, True)
        columns = _plan.columns(*width, True)
        across = tuple(columns)
        groups *= columns.bands.shape[1]
        kernel, tasks = _slide.backward, groups
    # Each task's own share of the sums.
    drpb = q.new_zeros(tasks, *table.shape[1:], dtype=torch.float32)
    dextra = q.new_zeros(2, groups, g.extra, g.dim, dtype=torch.float32)
    parallel_for(
        kernel,
        tasks,
        g,
        w,
        np.float32(scale),
        *maps,
        *grads,
        drpb.numpy(),
        *(x.data_ptr() for x in dextra),
        *rows,
        across,
        scratch=w.size,
    )
    if rpb is not None:
        drpb = drpb.unflatten(0, (g.heads, -1)).sum(1).view(rpb.shape).to(rpb.dtype)
    if extra_k is not None:
        # Tasks of a head are (bands and groups along x, batch, other groups).
        others = g.step_z * g.step_y
        across = groups // (g.heads * g.batch * others)
        parts = (2, g.heads, across, g.batch, others, g.extra, g.dim)
        dextra = dextra.view(parts).sum((2, 4)).permute(0, 2, 3, 1, 4).to(extra_k.dtype)
        dextra = dextra.contiguous()
    return (
        *(dq, dk, dv),
        none if rpb is None else drpb,
        *((none, none.clone()) if extra_k is None else dextra.unbind(0)),
    )


def _is_dense(rules):
    """Whether products of all positions are less work than windows in lanes of 16 positions."""
    z, y, x = (max(_plan.lengths(rule[0], rule[2])) for rule in rules)
    window = math.prod(rule[1] for rule in rules)
    count = z * y * x
    return count <= MOST_DENSE and count * _lanes(count) <= z * y * _lanes(x) * window


def _lanes(count):
    return -(-count // _plan.LANES) * _plan.LANES


def _positions(rules):
    return math.prod(max(_plan.lengths(rule[0], rule[2])) for rule in rules)


def _rules(q, kernel, dilation, stride, causal):
    """Arguments of ``_plan`` for three axes, of which the first may be of no extent."""
    axes = tuple(zip(q.shape[1:-2], kernel, dilation, stride, causal, strict=True))
    return ((1, 1, 1, 1, False),) * (3 - len(axes)) + axes


def _geometry(q, rules, extra):
    size, kernel, dilation = ([rule[i] for rule in rules] for i in range(3))
    return Geometry(
        q.shape[0], *q.shape[-2:], *size, *kernel, *dilation, 0 if extra is None else extra.shape[1]
    )


def _layout(x):
    if x is None:
        return Tensor(*(0,) * len(Tensor._fields))
    dtype, address, batch, *spatial, head = layout(x, -1)
    spatial = (*(0,) * (3 - len(spatial)), *spatial)
    return Tensor(dtype, address, batch, *spatial, head)


def _table(rpb):
    """The bias (heads, row of the window, index along the last axis); of no heads without one."""
    if rpb is None:
        return np.zeros((0, 1, 1), np.float32)
    table = rpb.detach().to(torch.float32).reshape(rpb.shape[0], -1, rpb.shape[-1])
    return table.contiguous().numpy()
