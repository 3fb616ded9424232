"""Window attention on GPUs: a program for a block of queries (or keys) of one window and head."""

import torch
import triton
import triton.language as tl

from .._triton import dot, dot_precision, launch

GROUPS = 32
"""Partial sums of the bias gradient; fixed, so that the result is the same in every run."""


@triton.jit
def _place(i_w, i_t, H, W, WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr):
    """Batch, positions, region and presence of tokens ``i_t`` of window ``i_w``.

    Tokens wrapped from the opposite border are of other regions than those that were not.
    """
    across = tl.cdiv(W, WW)
    down = tl.cdiv(H, WH)
    i_b = (i_w // (across * down)).to(tl.int64)
    i_w = i_w % (across * down)
    y = (i_w // across * WH + i_t // WW + SY) % (down * WH)
    x = (i_w % across * WW + i_t % WW + SX) % (across * WW)
    region = (y < SY) * 2 + (x < SX)
    return i_b, y.to(tl.int64), x.to(tl.int64), region, (i_t < WH * WW) & (y < H) & (x < W)


@triton.jit
def _load(p, i_b, y, x, i_h, i_d, s_b, s_y, s_x, s_h, m_t, D: tl.constexpr):
    """Rows [T, BD] of a tensor (B, H, W, heads, dim); zeros where masked."""
    offset = i_b * s_b + y * s_y + x * s_x + i_h * s_h
    return tl.load(p + offset[:, None] + i_d, mask=m_t[:, None] & (i_d < D), other=0.0)


@triton.jit
def _logits(
    b_q, b_k, p_bias, i_h, i_q, i_k, region_q, region_k, m_k, scale,
    WH: tl.constexpr, WW: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits [TQ, TK] with bias, -inf where a query may not see a key."""
    AREA: tl.constexpr = WH * WW
    b_s = dot(b_q, tl.trans(b_k), PRECISION) * scale
    if BIAS:
        inside = (i_q[:, None] < AREA) & (i_k[None, :] < AREA)
        at = i_h * AREA * AREA + i_q[:, None] * AREA + i_k[None, :]
        b_s += tl.load(p_bias + at, mask=inside, other=0.0).to(tl.float32)
    seen = (region_q[:, None] == region_k[None, :]) & m_k[None, :]
    return tl.where(seen, b_s, float("-inf"))


@triton.jit
def window_attention_fwd_kernel(
    p_q, p_k, p_v, p_bias, p_out, p_lse, scale, H, W, HEADS,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_w, i_h, i_m = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_d = tl.arange(0, BD)[None, :]
    i_q = i_m * BT + tl.arange(0, BT)
    i_b, y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
    b_q = _load(p_q, i_b, y, x, i_h, i_d, q_b, q_y, q_x, q_h, m_q, D)  # [BT, BD]

    b_out = tl.zeros([BT, BD], tl.float32)
    b_max = tl.full([BT], float("-inf"), tl.float32)
    b_sum = tl.zeros([BT], tl.float32)
    for start in range(0, WH * WW, BT):
        i_k = start + tl.arange(0, BT)
        _, y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
        b_k = _load(p_k, i_b, y_k, x_k, i_h, i_d, k_b, k_y, k_x, k_h, m_k, D)
        b_v = _load(p_v, i_b, y_k, x_k, i_h, i_d, v_b, v_y, v_x, v_h, m_k, D)
        b_s = _logits(
            b_q, b_k, p_bias, i_h, i_q, i_k, region_q, region_k, m_k, scale, WH, WW, BIAS, PRECISION
        )
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        # A block of keys may hold nothing that a query sees.
        b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp(b_s - b_ref[:, None])  # [BT, BT]
        b_decay = tl.exp(b_max - b_ref)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_out = b_out * b_decay[:, None] + dot(b_p.to(b_v.dtype), b_v, PRECISION)
        b_max = b_new

    b_out = b_out / tl.where(b_sum > 0, b_sum, 1.0)[:, None]
    offset = (((i_b * H + y) * W + x) * HEADS + i_h) * D
    tl.store(
        p_out + offset[:, None] + i_d,
        b_out.to(p_out.dtype.element_ty),
        mask=m_q[:, None] & (i_d < D),
    )
    tl.store(p_lse + ((i_b * HEADS + i_h) * H + y) * W + x, b_max + tl.log(b_sum), mask=m_q)


@triton.jit
def _load_gradient(p_grad, p_out, p_lse, i_b, y, x, i_h, i_d, H, W, HEADS, m_q, D: tl.constexpr):
    """Output gradients [T, BD], log-sum-exp [T], inner products of outputs and gradients [T]."""
    s_x = HEADS * D
    b_grad = _load(p_grad, i_b, y, x, i_h, i_d, H * W * s_x, W * s_x, s_x, D, m_q, D)
    b_out = _load(p_out, i_b, y, x, i_h, i_d, H * W * s_x, W * s_x, s_x, D, m_q, D)
    b_delta = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)
    b_lse = tl.load(p_lse + ((i_b * HEADS + i_h) * H + y) * W + x, mask=m_q, other=float("inf"))
    return b_grad, b_lse, b_delta


@triton.jit
def window_attention_bwd_kernel_dq(
    p_q, p_k, p_v, p_bias, p_out, p_lse, p_grad, p_dq, scale, H, W, HEADS,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_w, i_h, i_m = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_d = tl.arange(0, BD)[None, :]
    i_q = i_m * BT + tl.arange(0, BT)
    i_b, y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
    b_q = _load(p_q, i_b, y, x, i_h, i_d, q_b, q_y, q_x, q_h, m_q, D)
    b_grad, b_lse, b_delta = _load_gradient(
        p_grad, p_out, p_lse, i_b, y, x, i_h, i_d, H, W, HEADS, m_q, D
    )
    b_dq = tl.zeros([BT, BD], tl.float32)
    for start in range(0, WH * WW, BT):
        i_k = start + tl.arange(0, BT)
        _, y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
        b_k = _load(p_k, i_b, y_k, x_k, i_h, i_d, k_b, k_y, k_x, k_h, m_k, D)
        b_v = _load(p_v, i_b, y_k, x_k, i_h, i_d, v_b, v_y, v_x, v_h, m_k, D)
        b_s = _logits(
            b_q, b_k, p_bias, i_h, i_q, i_k, region_q, region_k, m_k, scale, WH, WW, BIAS, PRECISION
        )
        b_p = tl.exp(b_s - b_lse[:, None])
        b_ds = b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
        b_dq += dot(b_ds.to(b_k.dtype), b_k, PRECISION)
    offset = (((i_b * H + y) * W + x) * HEADS + i_h) * D
    tl.store(
        p_dq + offset[:, None] + i_d,
        (b_dq * scale).to(p_dq.dtype.element_ty),
        mask=m_q[:, None] & (i_d < D),
    )


@triton.jit
def window_attention_bwd_kernel_dkv(
    p_q, p_k, p_v, p_bias, p_out, p_lse, p_grad, p_dk, p_dv, scale, H, W, HEADS,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_w, i_h, i_n = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_d = tl.arange(0, BD)[None, :]
    i_k = i_n * BT + tl.arange(0, BT)
    i_b, y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
    b_k = _load(p_k, i_b, y_k, x_k, i_h, i_d, k_b, k_y, k_x, k_h, m_k, D)
    b_v = _load(p_v, i_b, y_k, x_k, i_h, i_d, v_b, v_y, v_x, v_h, m_k, D)
    b_dk = tl.zeros([BT, BD], tl.float32)
    b_dv = tl.zeros([BT, BD], tl.float32)
    for start in range(0, WH * WW, BT):
        i_q = start + tl.arange(0, BT)
        _, y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
        b_q = _load(p_q, i_b, y, x, i_h, i_d, q_b, q_y, q_x, q_h, m_q, D)
        b_grad, b_lse, b_delta = _load_gradient(
            p_grad, p_out, p_lse, i_b, y, x, i_h, i_d, H, W, HEADS, m_q, D
        )
        b_s = _logits(
            b_q, b_k, p_bias, i_h, i_q, i_k, region_q, region_k, m_k, scale, WH, WW, BIAS, PRECISION
        )
        b_p = tl.exp(b_s - b_lse[:, None])
        b_ds = b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
        b_dv += dot(tl.trans(b_p.to(b_grad.dtype)), b_grad, PRECISION)
        b_dk += dot(tl.trans(b_ds.to(b_q.dtype)), b_q, PRECISION)
    offset = (((i_b * H + y_k) * W + x_k) * HEADS + i_h) * D
    mask = m_k[:, None] & (i_d < D)
    tl.store(p_dk + offset[:, None] + i_d, (b_dk * scale).to(p_dk.dtype.element_ty), mask=mask)
    tl.store(p_dv + offset[:, None] + i_d, b_dv.to(p_dv.dtype.element_ty), mask=mask)


@triton.jit
def window_attention_bwd_kernel_dbias(
    p_q, p_k, p_v, p_bias, p_out, p_lse, p_grad, p_sums, scale, H, W, HEADS, windows, groups,
    q_b, q_y, q_x, q_h, k_b, k_y, k_x, k_h, v_b, v_y, v_x, v_h,
    WH: tl.constexpr, WW: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr, D: tl.constexpr,
    BD: tl.constexpr, BT: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums the gradient of a block of the bias [BT, BT] over a group of windows."""
    AREA: tl.constexpr = WH * WW
    BLOCKS: tl.constexpr = (AREA + BT - 1) // BT
    i_g, i_h, i_t = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    i_d = tl.arange(0, BD)[None, :]
    i_q = i_t // BLOCKS * BT + tl.arange(0, BT)
    i_k = i_t % BLOCKS * BT + tl.arange(0, BT)
    b_sum = tl.zeros([BT, BT], tl.float32)
    for i_w in range(i_g, windows, groups):
        i_b, y, x, region_q, m_q = _place(i_w, i_q, H, W, WH, WW, SY, SX)
        _, y_k, x_k, region_k, m_k = _place(i_w, i_k, H, W, WH, WW, SY, SX)
        b_q = _load(p_q, i_b, y, x, i_h, i_d, q_b, q_y, q_x, q_h, m_q, D)
        b_k = _load(p_k, i_b, y_k, x_k, i_h, i_d, k_b, k_y, k_x, k_h, m_k, D)
        b_v = _load(p_v, i_b, y_k, x_k, i_h, i_d, v_b, v_y, v_x, v_h, m_k, D)
        b_grad, b_lse, b_delta = _load_gradient(
            p_grad, p_out, p_lse, i_b, y, x, i_h, i_d, H, W, HEADS, m_q, D
        )
        b_s = _logits(
            b_q, b_k, p_bias, i_h, i_q, i_k, region_q, region_k, m_k, scale, WH, WW, BIAS, PRECISION
        )
        b_p = tl.exp(b_s - b_lse[:, None])
        b_sum += b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
    at = ((i_g * HEADS + i_h) * AREA + i_q[:, None]) * AREA + i_k[None, :]
    tl.store(p_sums + at, b_sum, mask=(i_q[:, None] < AREA) & (i_k[None, :] < AREA))


def forward(q, k, v, bias, window, shift, scale):
    """Output (B, H, W, heads, dim) and log-sum-exp of the logits (B, heads, H, W)."""
    batch, height, width, heads, _ = q.shape
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    lse = torch.empty(batch, heads, height, width, dtype=torch.float32, device=q.device)
    arguments, windows, blocks = _arguments(q, k, v, bias, window, shift, scale)
    launch(
        window_attention_fwd_kernel,
        (windows, heads, blocks),
        **arguments,
        p_out=out,
        p_lse=lse,
    )
    return out, lse


def backward(grad, q, k, v, bias, out, lse, window, shift, scale):
    """Gradients of q, k, v and bias, the last one empty where there is no bias."""
    heads = q.shape[3]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    arguments, windows, blocks = _arguments(q, k, v, bias, window, shift, scale)
    arguments.update(p_out=out, p_lse=lse, p_grad=grad.contiguous())
    grid = (windows, heads, blocks)
    launch(window_attention_bwd_kernel_dq, grid, **arguments, p_dq=dq)
    launch(window_attention_bwd_kernel_dkv, grid, **arguments, p_dk=dk, p_dv=dv)
    if bias is None:
        return dq, dk, dv, q.new_empty(0)
    groups = min(windows, GROUPS)
    sums = torch.empty(groups, *bias.shape, dtype=torch.float32, device=bias.device)
    launch(
        window_attention_bwd_kernel_dbias,
        (groups, heads, blocks * blocks),
        **arguments,
        p_sums=sums,
        windows=windows,
        groups=groups,
    )
    return dq, dk, dv, sums.sum(0).to(bias.dtype)


def _arguments(q, k, v, bias, window, shift, scale):
    """Arguments that all kernels share, the number of windows, and of blocks of their tokens."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, height, width, heads, dim = q.shape
    area = window[0] * window[1]
    block = min(max(triton.next_power_of_2(area), 16), 64)
    arguments = {
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
        "BT": block,
        "BIAS": bias is not None,
        "PRECISION": dot_precision(q.dtype),
    }
    windows = batch * -(-height // window[0]) * -(-width // window[1])
    return arguments, windows, -(-area // block)
