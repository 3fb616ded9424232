"""Window attention on GPUs: a program for a block of queries (or keys) of one window and head."""

import torch
import triton
import triton.language as tl

from .._layouts import with_contiguous_rows
from .._triton import dot, dot_precision, launch

GROUPS = 32
"""Partial sums of the bias gradient; fixed, so that the result is the same in every run."""


@triton.jit
def _place(i_w, i_t, H, W, WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr):
    """Positions, region and presence of tokens ``i_t`` of window ``i_w`` of a map.

    Tokens wrapped from the opposite border are of other regions than those that were not.
    """
    across = tl.cdiv(W, WW)
    down = tl.cdiv(H, WH)
    y = i_w // across * WH + i_t // WW + SY
    x = i_w % across * WW + i_t % WW + SX
    y = tl.where(y >= down * WH, y - down * WH, y)
    x = tl.where(x >= across * WW, x - across * WW, x)
    region = (y < SY) * 2 + (x < SX)
    return y.to(tl.int64), x.to(tl.int64), region, (i_t < WH * WW) & (y < H) & (x < W)


@triton.jit
def _load(p, y, x, s_y, s_x, i_d, m_t, D: tl.constexpr):
    """Rows [T, BD] of one head of a map; zeros where masked."""
    at = y * s_y + x * s_x
    return tl.load(p + at[:, None] + i_d, mask=m_t[:, None] & (i_d < D), other=0.0)


@triton.jit
def _store(p, b_x, y, x, s_y, s_x, i_d, m_t, D: tl.constexpr):
    """Stores what ``_load`` loads."""
    at = y * s_y + x * s_x
    b_x = b_x.to(p.dtype.element_ty)
    tl.store(p + at[:, None] + i_d, b_x, mask=m_t[:, None] & (i_d < D))


@triton.jit
def _load_bias(
    p_bias, i_r, i_c, AREA: tl.constexpr, S_R: tl.constexpr, S_C: tl.constexpr, BIAS: tl.constexpr
):
    """Bias [R, C] between tokens of a window, whose strides say which of them are queries."""
    inside = (i_r[:, None] < AREA) & (i_c[None, :] < AREA) & BIAS
    at = i_r[:, None] * S_R + i_c[None, :] * S_C
    return tl.load(p_bias + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _logits(b_r, b_c, b_bias, region_r, region_c, m_c, scale, PRECISION: tl.constexpr):
    """Logits [R, C] of queries and keys or keys and queries, -inf where they do not see another."""
    b_s = dot(b_r, tl.trans(b_c), PRECISION) * scale + b_bias
    seen = (region_r[:, None] == region_c[None, :]) & m_c[None, :]
    return tl.where(seen, b_s, float("-inf"))


@triton.jit
def window_attention_fwd_kernel(
    p_q, p_k, p_v, p_bias, p_out, p_lse, scale, H, W, HEADS,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    AREA: tl.constexpr = WH * WW
    i_w, i_h, i_m = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    windows = tl.cdiv(H, WH) * tl.cdiv(W, WW)
    i_b, i_w = (i_w // windows).to(tl.int64), i_w % windows
    p_q += i_b * q_b + i_h * q_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_bias += i_h * AREA * AREA
    p_out += (i_b * H * W * HEADS + i_h) * D
    p_lse += (i_b * HEADS + i_h) * H * W

    i_d = tl.arange(0, BD)[None, :]
    i_q = i_m * BR + tl.arange(0, BR)
    y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
    b_q = _load(p_q, y, x, q_y, q_x, i_d, m_q, D)  # [BR, BD]
    b_out = tl.zeros([BR, BD], tl.float32)
    b_max = tl.full([BR], float("-inf"), tl.float32)
    b_sum = tl.zeros([BR], tl.float32)
    for start in range(0, AREA, BC):
        i_k = start + tl.arange(0, BC)
        y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
        b_k = _load(p_k, y_k, x_k, k_y, k_x, i_d, m_k, D)
        b_v = _load(p_v, y_k, x_k, v_y, v_x, i_d, m_k, D)
        b_bias = _load_bias(p_bias, i_q, i_k, AREA, AREA, 1, BIAS)
        b_s = _logits(b_q, b_k, b_bias, region_q, region_k, m_k, scale, PRECISION)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        # A block of keys may hold nothing that a query sees.
        b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp(b_s - b_ref[:, None])  # [BR, BC]
        b_decay = tl.exp(b_max - b_ref)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_out = b_out * b_decay[:, None] + dot(b_p.to(b_v.dtype), b_v, PRECISION)
        b_max = b_new

    b_out = b_out / tl.where(b_sum > 0, b_sum, 1.0)[:, None]
    _store(p_out, b_out, y, x, W * HEADS * D, HEADS * D, i_d, m_q, D)
    tl.store(p_lse + y * W + x, b_max + tl.log(b_sum), mask=m_q)


@triton.jit
def window_attention_bwd_kernel_dq(
    p_q, p_k, p_v, p_bias, p_out, p_lse, p_grad, p_delta, p_dq, scale, H, W, HEADS,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Also stores the inner products of outputs and their gradients, which the others need."""
    AREA: tl.constexpr = WH * WW
    i_w, i_h, i_m = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    windows = tl.cdiv(H, WH) * tl.cdiv(W, WW)
    i_b, i_w = (i_w // windows).to(tl.int64), i_w % windows
    p_q += i_b * q_b + i_h * q_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_bias += i_h * AREA * AREA
    i_out = (i_b * H * W * HEADS + i_h) * D
    i_row = (i_b * HEADS + i_h) * H * W
    s_y, s_x = W * HEADS * D, HEADS * D

    i_d = tl.arange(0, BD)[None, :]
    i_q = i_m * BR + tl.arange(0, BR)
    y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
    b_grad = _load(p_grad + i_out, y, x, s_y, s_x, i_d, m_q, D)
    b_out = _load(p_out + i_out, y, x, s_y, s_x, i_d, m_q, D)
    b_delta = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)
    tl.store(p_delta + i_row + y * W + x, b_delta, mask=m_q)
    b_lse = tl.load(p_lse + i_row + y * W + x, mask=m_q, other=float("inf"))
    b_q = _load(p_q, y, x, q_y, q_x, i_d, m_q, D)  # [BR, BD]
    b_dq = tl.zeros([BR, BD], tl.float32)
    for start in range(0, AREA, BC):
        i_k = start + tl.arange(0, BC)
        y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
        b_k = _load(p_k, y_k, x_k, k_y, k_x, i_d, m_k, D)
        b_v = _load(p_v, y_k, x_k, v_y, v_x, i_d, m_k, D)
        b_bias = _load_bias(p_bias, i_q, i_k, AREA, AREA, 1, BIAS)
        b_s = _logits(b_q, b_k, b_bias, region_q, region_k, m_k, scale, PRECISION)
        b_p = tl.exp(b_s - b_lse[:, None])  # [BR, BC]
        b_ds = b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
        b_dq += dot(b_ds.to(b_k.dtype), b_k, PRECISION)
    _store(p_dq + i_out, b_dq * scale, y, x, s_y, s_x, i_d, m_q, D)


@triton.jit
def window_attention_bwd_kernel_dkv(
    p_q, p_k, p_v, p_bias, p_lse, p_grad, p_delta, p_dk, p_dv, scale, H, W, HEADS,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys are rows here, so that no matrix of weights has to be transposed."""
    AREA: tl.constexpr = WH * WW
    i_w, i_h, i_n = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    windows = tl.cdiv(H, WH) * tl.cdiv(W, WW)
    i_b, i_w = (i_w // windows).to(tl.int64), i_w % windows
    p_q += i_b * q_b + i_h * q_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_bias += i_h * AREA * AREA
    i_out = (i_b * H * W * HEADS + i_h) * D
    i_row = (i_b * HEADS + i_h) * H * W
    s_y, s_x = W * HEADS * D, HEADS * D

    i_d = tl.arange(0, BD)[None, :]
    i_k = i_n * BR + tl.arange(0, BR)
    y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
    b_k = _load(p_k, y_k, x_k, k_y, k_x, i_d, m_k, D)
    b_v = _load(p_v, y_k, x_k, v_y, v_x, i_d, m_k, D)
    b_dk = tl.zeros([BR, BD], tl.float32)
    b_dv = tl.zeros([BR, BD], tl.float32)
    for start in range(0, AREA, BC):
        i_q = start + tl.arange(0, BC)
        y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
        b_q = _load(p_q, y, x, q_y, q_x, i_d, m_q, D)
        b_grad = _load(p_grad + i_out, y, x, s_y, s_x, i_d, m_q, D)
        b_lse = tl.load(p_lse + i_row + y * W + x, mask=m_q, other=float("inf"))
        b_delta = tl.load(p_delta + i_row + y * W + x, mask=m_q, other=0.0)
        b_bias = _load_bias(p_bias, i_k, i_q, AREA, 1, AREA, BIAS)
        b_s = _logits(b_k, b_q, b_bias, region_k, region_q, m_q, scale, PRECISION)
        b_p = tl.exp(b_s - b_lse[None, :])  # [BR of keys, BC of queries]
        b_ds = b_p * (dot(b_v, tl.trans(b_grad), PRECISION) - b_delta[None, :])
        b_dv += dot(b_p.to(b_grad.dtype), b_grad, PRECISION)
        b_dk += dot(b_ds.to(b_q.dtype), b_q, PRECISION)
    _store(p_dk + i_out, b_dk * scale, y_k, x_k, s_y, s_x, i_d, m_k, D)
    _store(p_dv + i_out, b_dv, y_k, x_k, s_y, s_x, i_d, m_k, D)


@triton.jit
def window_attention_bwd_kernel_dbias(
    p_q, p_k, p_v, p_bias, p_lse, p_grad, p_delta, p_sums, scale, H, W, HEADS, total, groups,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums the gradient of a block of the bias [BR, BC] over a group of windows."""
    AREA: tl.constexpr = WH * WW
    BLOCKS: tl.constexpr = (AREA + BC - 1) // BC
    i_g, i_h, i_t = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    windows = tl.cdiv(H, WH) * tl.cdiv(W, WW)
    p_q += i_h * q_h
    p_k += i_h * k_h
    p_v += i_h * v_h
    p_bias += i_h * AREA * AREA
    s_y, s_x = W * HEADS * D, HEADS * D

    i_d = tl.arange(0, BD)[None, :]
    i_q = i_t // BLOCKS * BR + tl.arange(0, BR)
    i_k = i_t % BLOCKS * BC + tl.arange(0, BC)
    b_bias = _load_bias(p_bias, i_q, i_k, AREA, AREA, 1, BIAS)
    b_sum = tl.zeros([BR, BC], tl.float32)
    for i in range(i_g, total, groups):
        i_b, i_w = (i // windows).to(tl.int64), i % windows
        i_out = (i_b * H * W * HEADS + i_h) * D
        i_row = (i_b * HEADS + i_h) * H * W
        y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
        y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
        b_q = _load(p_q + i_b * q_b, y, x, q_y, q_x, i_d, m_q, D)
        b_k = _load(p_k + i_b * k_b, y_k, x_k, k_y, k_x, i_d, m_k, D)
        b_v = _load(p_v + i_b * v_b, y_k, x_k, v_y, v_x, i_d, m_k, D)
        b_grad = _load(p_grad + i_out, y, x, s_y, s_x, i_d, m_q, D)
        b_lse = tl.load(p_lse + i_row + y * W + x, mask=m_q, other=float("inf"))
        b_delta = tl.load(p_delta + i_row + y * W + x, mask=m_q, other=0.0)
        b_s = _logits(b_q, b_k, b_bias, region_q, region_k, m_k, scale, PRECISION)
        b_p = tl.exp(b_s - b_lse[:, None])
        b_sum += b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
    p_sums += (i_g * HEADS + i_h) * AREA * AREA
    inside = (i_q[:, None] < AREA) & (i_k[None, :] < AREA)
    tl.store(p_sums + i_q[:, None] * AREA + i_k[None, :], b_sum, mask=inside)


def forward(q, k, v, bias, window, shift, scale):
    """Output (B, H, W, heads, dim) and log-sum-exp of the logits (B, heads, H, W)."""
    batch, height, width, heads, _ = q.shape
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    lse = torch.empty(batch, heads, height, width, dtype=torch.float32, device=q.device)
    arguments = _arguments(q, k, v, bias, window, shift, scale)
    tiles = _tiles(q, window)
    grid = (_windows(q, window), heads, _blocks(window, tiles["BR"]))
    launch(window_attention_fwd_kernel, grid, **arguments, **tiles, p_out=out, p_lse=lse)
    return out, lse


def backward(grad, q, k, v, bias, out, lse, window, shift, scale):
    """Gradients of q, k, v and bias, the last one empty where there is no bias."""
    heads = q.shape[3]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    arguments = _arguments(q, k, v, bias, window, shift, scale)
    arguments.update(p_lse=lse, p_grad=grad.contiguous(), p_delta=delta)
    windows, tiles = _windows(q, window), _tiles(q, window)
    grid = (windows, heads, _blocks(window, tiles["BR"]))
    launch(window_attention_bwd_kernel_dq, grid, **arguments, **tiles, p_out=out, p_dq=dq)
    launch(window_attention_bwd_kernel_dkv, grid, **arguments, **tiles, p_dk=dk, p_dv=dv)
    if bias is None:
        return dq, dk, dv, q.new_empty(0)
    if q.dtype == torch.float32:
        # All four operands are split in two here, which only small tiles have registers for.
        tiles.update(BR=16, BC=min(tiles["BR"], 32), num_warps=4)
    groups = min(windows, GROUPS)
    sums = torch.empty(groups, *bias.shape, dtype=torch.float32, device=bias.device)
    launch(
        window_attention_bwd_kernel_dbias,
        (groups, heads, _blocks(window, tiles["BR"]) * _blocks(window, tiles["BC"])),
        **arguments,
        **tiles,
        p_sums=sums,
        total=windows,
        groups=groups,
    )
    return dq, dk, dv, sums.sum(0).to(bias.dtype)


def _windows(q, window):
    """Windows of all maps, those at the border included."""
    batch, height, width = q.shape[:3]
    return batch * -(-height // window[0]) * -(-width // window[1])


def _tiles(q, window):
    """Rows of a program and columns that it takes at a time, one warp for each 16 rows.

    fp32 is multiplied in three parts, which take registers.
    """
    block = max(triton.next_power_of_2(window[0] * window[1]), 16)
    rows, columns = min(block, 64), min(block, 16 if q.dtype == torch.float32 else 32)
    return {"BR": rows, "BC": columns, "num_warps": rows // 16, "num_stages": 1}


def _blocks(window, block):
    return -(-window[0] * window[1] // block)


def _arguments(q, k, v, bias, window, shift, scale):
    """Arguments that all kernels share."""
    q, k, v = with_contiguous_rows(q, k, v)
    _, height, width, heads, dim = q.shape
    return {
        "p_q": q,
        "p_k": k,
        "p_v": v,
        "p_bias": q if bias is None else bias.contiguous(),
        "scale": float(scale),
        "H": height,
        "W": width,
        "HEADS": heads,
        **{
            f"{name}_{axis}": stride
            for name, x in (("q", q), ("k", k), ("v", v))
            for axis, stride in zip("byxh", x.stride()[:4], strict=True)
        },
        "WH": window[0],
        "WW": window[1],
        "SY": shift[0],
        "SX": shift[1],
        "D": dim,
        "BD": max(triton.next_power_of_2(dim), 16),
        "BIAS": bias is not None,
        "PRECISION": dot_precision(q.dtype),
    }
