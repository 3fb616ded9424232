"""Bi-level routing attention on GPUs: a program for a block of queries of a region and head.

The tokens of all regions that a region attends to make one list, which is gone through in blocks;
so a block holds many regions where these are small. The same holds, for keys, of the queries that
chose their region. Logits are multiplied by log2(e), so that exponentials are powers of 2.
"""

import math

import torch
import triton
import triton.language as tl

from .._layouts import with_contiguous_rows
from .._triton import dot, dot_precision, launch
from .reference import choose_regions, invert_routing, lay_grids, populated_regions


@triton.jit
def _place(i_r, i_t, COLUMNS, RH, RW, H, W):
    """Rows, columns and presence of tokens of regions, and whether their regions have any."""
    top, left = i_r // COLUMNS * RH, i_r % COLUMNS * RW
    y, x = top + i_t // RW, left + i_t % RW
    populated = (i_r >= 0) & (top < H) & (left < W)
    return y.to(tl.int64), x.to(tl.int64), populated & (y < H) & (x < W), populated


@triton.jit
def _list(
    p_regions, first, last, base, i, COLUMNS, RH, RW, H, W,
    BT: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Block ``i`` of the tokens of the regions in a list from ``first`` to ``last``.

    Regions are numbered from ``base``. A block holds ``PACK`` whole regions, or part of one.

    Returns:
        Rows, columns and presence of the tokens, and whether they are listed, padding or not.
    """
    i_t = tl.arange(0, BT)
    if PACK > 1:
        i_j = i * PACK + i_t // (BT // PACK)
        i_t = i_t % (BT // PACK)
    else:
        blocks = tl.cdiv(RH * RW, BT)
        i_j = i // blocks
        i_t = i % blocks * BT + i_t
    m_j = first + i_j < last
    i_r = (tl.load(p_regions + first + i_j, mask=m_j, other=base) - base).to(tl.int32)
    y, x, inside, populated = _place(i_r, i_t, COLUMNS, RH, RW, H, W)
    m_t = m_j & (i_t < RH * RW)
    return y, x, inside & m_t, populated & m_t


@triton.jit
def _count_blocks(regions, RH, RW, BT: tl.constexpr, PACK: tl.constexpr):
    """Blocks of a list of regions."""
    if PACK > 1:
        return tl.cdiv(regions, PACK)
    return regions * tl.cdiv(RH * RW, BT)


@triton.jit
def _load(p, i_b, y, x, i_h, i_d, s_b, s_y, s_x, s_h, m_t, D: tl.constexpr):
    """Rows [T, BD] of a tensor (B, H, W, heads, dim); zeros where masked."""
    offset = i_b * s_b + y * s_y + x * s_x + i_h * s_h
    return tl.load(p + offset[:, None] + i_d, mask=m_t[:, None] & (i_d < D), other=0.0)


@triton.jit
def _store(p, value, i_b, y, x, i_h, i_d, H, W, HEADS, m_t, D: tl.constexpr):
    """Writes rows [T, BD] of a contiguous tensor (B, H, W, heads, dim)."""
    offset = (((i_b * H + y) * W + x) * HEADS + i_h) * D
    mask = m_t[:, None] & (i_d < D)
    tl.store(p + offset[:, None] + i_d, value.to(p.dtype.element_ty), mask=mask)


@triton.jit
def region_mean_fwd_kernel(
    p_x, p_mean, H, W, ROWS, COLUMNS, RH, RW, C,
    x_b, x_y, x_x, x_h,
    D: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    i_p, i_c = tl.program_id(0), tl.program_id(1) * BC + tl.arange(0, BC)
    i_b, i_r = (i_p // (ROWS * COLUMNS)).to(tl.int64), i_p % (ROWS * COLUMNS)
    channel = (i_c // D).to(tl.int64) * x_h + i_c % D
    b_sum = tl.zeros([BC], tl.float32)
    b_count = tl.zeros([BT], tl.float32)
    for start in range(0, RH * RW, BT):
        i_t = start + tl.arange(0, BT)
        y, x, inside, _ = _place(i_r, i_t, COLUMNS, RH, RW, H, W)
        inside = inside & (i_t < RH * RW)
        offset = i_b * x_b + y * x_y + x * x_x
        b_x = tl.load(
            p_x + offset[:, None] + channel[None, :],
            mask=inside[:, None] & (i_c < C)[None, :],
            other=0.0,
        )  # [BT, BC]
        b_sum += tl.sum(b_x.to(tl.float32), 0)
        b_count += inside.to(tl.float32)
    count = tl.maximum(tl.sum(b_count, 0), 1.0)
    tl.store(p_mean + i_p.to(tl.int64) * C + i_c, b_sum / count, mask=i_c < C)


@triton.jit
def bilevel_routing_attention_fwd_kernel(
    p_q, p_k, p_v, p_routing, p_out, p_lse, scale, HEADS, TOPK, ROWS, COLUMNS, COLUMNSK,
    H, W, RH, RW, HK, WK, RHK, RWK,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, PACKK: tl.constexpr, ZERO: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i_p, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_r = (i_p // (ROWS * COLUMNS)).to(tl.int64), i_p % (ROWS * COLUMNS)
    i_q = tl.program_id(2) * BQ + tl.arange(0, BQ)
    i_d, i_dv = tl.arange(0, BD)[None, :], tl.arange(0, BDV)[None, :]
    y, x, m_q, _ = _place(i_r, i_q, COLUMNS, RH, RW, H, W)
    m_q = m_q & (i_q < RH * RW)
    b_q = _load(p_q, i_b, y, x, i_h, i_d, q_b, q_y, q_x, q_h, m_q, D)  # [BQ, BD]

    b_out = tl.zeros([BQ, BDV], tl.float32)
    b_max = tl.full([BQ], float("-inf"), tl.float32)
    b_sum = tl.zeros([BQ], tl.float32)
    first = i_p.to(tl.int64) * TOPK
    for i in range(0, _count_blocks(TOPK, RHK, RWK, BK, PACKK)):
        y_k, x_k, m_k, seen = _list(
            p_routing, first, first + TOPK, 0, i, COLUMNSK, RHK, RWK, HK, WK, BK, PACKK
        )
        seen = seen if ZERO else m_k
        b_k = _load(p_k, i_b, y_k, x_k, i_h, i_d, k_b, k_y, k_x, k_h, m_k, D)  # [BK, BD]
        b_v = _load(p_v, i_b, y_k, x_k, i_h, i_dv, v_b, v_y, v_x, v_h, m_k, DV)  # [BK, BDV]
        b_s = dot(b_q, tl.trans(b_k), PRECISION) * scale  # [BQ, BK]
        b_s = tl.where(seen[None, :], b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        # A block of keys may hold nothing that is seen.
        b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp2(b_s - b_ref[:, None])
        b_decay = tl.exp2(b_max - b_ref)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_out = b_out * b_decay[:, None] + dot(b_p.to(b_v.dtype), b_v, PRECISION)
        b_max = b_new

    _store(p_out, b_out / b_sum[:, None], i_b, y, x, i_h, i_dv, H, W, HEADS, m_q, DV)
    tl.store(p_lse + ((i_b * HEADS + i_h) * H + y) * W + x, b_max + tl.log2(b_sum), mask=m_q)


@triton.jit
def _load_gradient(p_grad, p_out, p_lse, i_b, y, x, i_h, i_dv, H, W, HEADS, m_q, DV: tl.constexpr):
    """Output gradients [T, BDV], log-sum-exp [T], inner products of outputs and gradients [T]."""
    s_x = HEADS * DV
    s_y = W.to(tl.int64) * s_x
    b_grad = _load(p_grad, i_b, y, x, i_h, i_dv, H * s_y, s_y, s_x, DV, m_q, DV)
    b_out = _load(p_out, i_b, y, x, i_h, i_dv, H * s_y, s_y, s_x, DV, m_q, DV)
    b_delta = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)
    b_lse = tl.load(p_lse + ((i_b * HEADS + i_h) * H + y) * W + x, mask=m_q, other=float("inf"))
    return b_grad, b_lse, b_delta


@triton.jit
def bilevel_routing_attention_bwd_kernel_dq(
    p_q, p_k, p_v, p_routing, p_out, p_lse, p_grad, p_dq,
    scale, HEADS, TOPK, ROWS, COLUMNS, COLUMNSK,
    H, W, RH, RW, HK, WK, RHK, RWK,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, PACKK: tl.constexpr, ZERO: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    i_p, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_r = (i_p // (ROWS * COLUMNS)).to(tl.int64), i_p % (ROWS * COLUMNS)
    i_q = tl.program_id(2) * BQ + tl.arange(0, BQ)
    i_d, i_dv = tl.arange(0, BD)[None, :], tl.arange(0, BDV)[None, :]
    y, x, m_q, _ = _place(i_r, i_q, COLUMNS, RH, RW, H, W)
    m_q = m_q & (i_q < RH * RW)
    b_q = _load(p_q, i_b, y, x, i_h, i_d, q_b, q_y, q_x, q_h, m_q, D)
    b_grad, b_lse, b_delta = _load_gradient(
        p_grad, p_out, p_lse, i_b, y, x, i_h, i_dv, H, W, HEADS, m_q, DV
    )
    b_dq = tl.zeros([BQ, BD], tl.float32)
    first = i_p.to(tl.int64) * TOPK
    for i in range(0, _count_blocks(TOPK, RHK, RWK, BK, PACKK)):
        y_k, x_k, m_k, seen = _list(
            p_routing, first, first + TOPK, 0, i, COLUMNSK, RHK, RWK, HK, WK, BK, PACKK
        )
        seen = seen if ZERO else m_k
        b_k = _load(p_k, i_b, y_k, x_k, i_h, i_d, k_b, k_y, k_x, k_h, m_k, D)
        b_v = _load(p_v, i_b, y_k, x_k, i_h, i_dv, v_b, v_y, v_x, v_h, m_k, DV)
        b_s = dot(b_q, tl.trans(b_k), PRECISION) * scale
        b_p = tl.where(seen[None, :], tl.exp2(b_s - b_lse[:, None]), 0.0)  # [BQ, BK]
        b_ds = b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
        b_dq += dot(b_ds.to(b_k.dtype), b_k, PRECISION)
    b_dq *= scale * 0.6931471805599453  # log(2): the scale is for powers of 2
    _store(p_dq, b_dq, i_b, y, x, i_h, i_d, H, W, HEADS, m_q, D)


@triton.jit
def bilevel_routing_attention_bwd_kernel_dkv(
    p_q, p_k, p_v, p_starts, p_users, p_out, p_lse, p_grad, p_dk, p_dv,
    scale, HEADS, ROWS, COLUMNS, ROWSK, COLUMNSK,
    H, W, RH, RW, HK, WK, RHK, RWK,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    BQ: tl.constexpr, BK: tl.constexpr, PACKQ: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_p, i_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_r = (i_p // (ROWSK * COLUMNSK)).to(tl.int64), i_p % (ROWSK * COLUMNSK)
    i_n = tl.program_id(2) * BK + tl.arange(0, BK)
    i_d, i_dv = tl.arange(0, BD)[None, :], tl.arange(0, BDV)[None, :]
    y_k, x_k, m_k, _ = _place(i_r, i_n, COLUMNSK, RHK, RWK, HK, WK)
    m_k = m_k & (i_n < RHK * RWK)
    b_k = _load(p_k, i_b, y_k, x_k, i_h, i_d, k_b, k_y, k_x, k_h, m_k, D)  # [BK, BD]
    b_v = _load(p_v, i_b, y_k, x_k, i_h, i_dv, v_b, v_y, v_x, v_h, m_k, DV)  # [BK, BDV]
    b_dk = tl.zeros([BK, BD], tl.float32)
    b_dv = tl.zeros([BK, BDV], tl.float32)
    first, last = tl.load(p_starts + i_p), tl.load(p_starts + i_p + 1)
    users = (last - first).to(tl.int32)
    for i in range(0, _count_blocks(users, RH, RW, BQ, PACKQ)):
        y, x, m_q, _listed = _list(
            p_users, first, last, i_b * (ROWS * COLUMNS), i, COLUMNS, RH, RW, H, W, BQ, PACKQ
        )
        b_q = _load(p_q, i_b, y, x, i_h, i_d, q_b, q_y, q_x, q_h, m_q, D)  # [BQ, BD]
        b_grad, b_lse, b_delta = _load_gradient(
            p_grad, p_out, p_lse, i_b, y, x, i_h, i_dv, H, W, HEADS, m_q, DV
        )
        b_s = dot(b_k, tl.trans(b_q), PRECISION) * scale  # [BK, BQ]
        b_p = tl.exp2(b_s - b_lse[None, :])
        b_ds = b_p * (dot(b_v, tl.trans(b_grad), PRECISION) - b_delta[None, :])
        b_dv += dot(b_p.to(b_grad.dtype), b_grad, PRECISION)
        b_dk += dot(b_ds.to(b_q.dtype), b_q, PRECISION)
    b_dk *= scale * 0.6931471805599453
    _store(p_dk, b_dk, i_b, y_k, x_k, i_h, i_d, HK, WK, HEADS, m_k, D)
    _store(p_dv, b_dv, i_b, y_k, x_k, i_h, i_dv, HK, WK, HEADS, m_k, DV)


def route_regions(q, k, regions, topk, scale, pad_mode):
    """Routing indices (B, P, topk)."""
    grids = lay_grids(q, k, regions, pad_mode)
    means = [_region_means(x, grid) for x, grid in zip((q, k), grids, strict=True)]
    return choose_regions(*means, populated_regions(k, grids[1]), topk, scale)


def forward(q, k, v, routing, regions, scale, pad_mode):
    """Output (B, H, W, heads, dim_v), and log2 of the sums of exponentials (B, heads, H, W)."""
    batch, height, width, heads, _ = q.shape
    out = torch.empty(batch, height, width, heads, v.shape[-1], dtype=v.dtype, device=v.device)
    lse = torch.empty(batch, heads, height, width, dtype=torch.float32, device=q.device)
    q_grid, k_grid = lay_grids(q, k, regions, pad_mode)
    arguments, by_query, _ = _arguments(q, k, v, q_grid, k_grid, scale)
    launch(
        bilevel_routing_attention_fwd_kernel,
        by_query,
        # In fp32, a block loaded ahead costs more registers than there are.
        num_stages=1 if q.dtype == torch.float32 else 2,
        **arguments,
        **_by_query(q, v, routing, q_grid, k_grid, pad_mode),
        p_out=out,
        p_lse=lse,
    )
    return out, lse


def backward(grad, q, k, v, routing, out, lse, regions, scale, pad_mode):
    """Gradients of q, k and v."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    q_grid, k_grid = lay_grids(q, k, regions, pad_mode)
    arguments, by_query, by_key = _arguments(q, k, v, q_grid, k_grid, scale)
    arguments.update(p_out=out, p_lse=lse, p_grad=grad.contiguous())
    launch(
        bilevel_routing_attention_bwd_kernel_dq,
        by_query,
        **arguments,
        **_by_query(q, v, routing, q_grid, k_grid, pad_mode),
        p_dq=dq,
    )
    starts, users = invert_routing(routing, k_grid.rows * k_grid.columns)
    most = _most_tokens(q, v)
    # Two sums and two products at once: the list of queries goes in smaller blocks.
    block, pack = _listed_block(q_grid, most, max(most // 2, 16))
    launch(
        bilevel_routing_attention_bwd_kernel_dkv,
        by_key,
        **arguments,
        p_starts=starts,
        p_users=users,
        ROWSK=k_grid.rows,
        COLUMNSK=k_grid.columns,
        BQ=block,
        BK=_own_block(k_grid, most),
        PACKQ=pack,
        p_dk=dk,
        p_dv=dv,
    )
    return dq, dk, dv


def _region_means(x, grid):
    """Means over the tokens of each region, (B, P, heads * dim); 0 where there are none."""
    (x,) = with_contiguous_rows(x)
    batch, height, width, heads, dim = x.shape
    channels, count = heads * dim, grid.rows * grid.columns
    block = min(triton.next_power_of_2(channels), 128)
    means = torch.empty(batch, count, channels, dtype=torch.float32, device=x.device)
    launch(
        region_mean_fwd_kernel,
        (batch * count, triton.cdiv(channels, block)),
        p_x=x,
        p_mean=means,
        H=height,
        W=width,
        ROWS=grid.rows,
        COLUMNS=grid.columns,
        RH=grid.height,
        RW=grid.width,
        C=channels,
        **_strides("x", x),
        D=dim,
        BT=min(_area(grid), 32),
        BC=block,
    )
    return means


def _by_query(q, v, routing, q_grid, k_grid, pad_mode):
    """Further arguments of the kernels whose programs own queries."""
    most = _most_tokens(q, v)
    block, pack = _listed_block(k_grid, routing.shape[-1], most)
    return {
        "p_routing": routing.contiguous(),
        "TOPK": routing.shape[-1],
        "COLUMNSK": k_grid.columns,
        "BQ": _own_block(q_grid, most),
        "BK": block,
        "PACKK": pack,
        "ZERO": pad_mode == "zero",
    }


def _arguments(q, k, v, q_grid, k_grid, scale):
    """Arguments that the kernels of attention share, and their grids by queries and by keys."""
    q, k, v = with_contiguous_rows(q, k, v)
    batch, height, width, heads, dim = q.shape
    most = _most_tokens(q, v)
    arguments = {
        "p_q": q,
        "p_k": k,
        "p_v": v,
        "scale": float(scale) * math.log2(math.e),
        "HEADS": heads,
        "ROWS": q_grid.rows,
        "COLUMNS": q_grid.columns,
        "H": height,
        "W": width,
        "RH": q_grid.height,
        "RW": q_grid.width,
        "HK": k.shape[1],
        "WK": k.shape[2],
        "RHK": k_grid.height,
        "RWK": k_grid.width,
        **_strides("q", q),
        **_strides("k", k),
        **_strides("v", v),
        "D": dim,
        "DV": v.shape[-1],
        "BD": max(triton.next_power_of_2(dim), 16),
        "BDV": max(triton.next_power_of_2(v.shape[-1]), 16),
        "PRECISION": dot_precision(q.dtype),
    }
    by_query, by_key = (
        (
            batch * grid.rows * grid.columns,
            heads,
            triton.cdiv(grid.height * grid.width, _own_block(grid, most)),
        )
        for grid in (q_grid, k_grid)
    )
    return arguments, by_query, by_key


def _strides(name, x):
    return {f"{name}_{axis}": s for axis, s in zip("byxh", x.stride()[:4], strict=True)}


def _most_tokens(q, v):
    """Tokens of the largest blocks that registers hold."""
    wide = max(q.shape[-1], v.shape[-1]) > 32
    return (64 if q.dtype != torch.float32 else 32) // (2 if wide else 1)


def _area(grid):
    return triton.next_power_of_2(grid.height * grid.width)


def _own_block(grid, most):
    """Tokens of a region in a block."""
    return min(max(_area(grid), 16), most)


def _listed_block(grid, regions, most):
    """Tokens in a block of some listed regions, and the number of regions in it."""
    area = min(_area(grid), most)
    block = min(max(area * triton.next_power_of_2(regions), 16), most)
    return block, block // area
