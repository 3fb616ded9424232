"""Neighborhood attention on GPUs: a program for a tile of queries (or keys) of one group and head.

Maps have three axes here, the first of which may be of no extent. Positions that are equal modulo
the dilation are a group, and all indices are those of a group unless said otherwise. A tile of
queries runs over tiles of keys that cover its windows, and a mask takes away what is outside.
"""

import math

import torch
import triton
import triton.language as tl

from .._layouts import with_contiguous_rows
from .._triton import dot, dot_precision, launch

PROGRAMS = 512
"""Programs that sum the bias gradient; fixed, so that the result is the same in every run."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(i, Z, Y, X, DZ: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
          TZ: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr):  # fmt: skip
    """Batch, group and first position of a tile."""
    nz = tl.cdiv(tl.cdiv(Z, DZ), TZ)
    ny = tl.cdiv(tl.cdiv(Y, DY), TY)
    nx = tl.cdiv(tl.cdiv(X, DX), TX)
    x = i % nx * TX
    i = i // nx
    y = i % ny * TY
    i = i // ny
    z = i % nz * TZ
    i = i // nz
    g_x = i % DX
    i = i // DX
    g_y = i % DY
    i = i // DY
    g_z = i % DZ
    return (i // DZ).to(tl.int64), g_z, g_y, g_x, z, y, x


@triton.jit
def _length(size, group, STEP: tl.constexpr):
    """Positions of an axis that are equal to ``group`` modulo the dilation."""
    return (size - group + STEP - 1) // STEP


@triton.jit
def _within(i, TZ: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr):
    """Coordinates of the positions of a tile."""
    return i // (TY * TX), i // TX % TY, i % TX


@triton.jit
def _window(q, length, K: tl.constexpr, S: tl.constexpr, CAUSAL: tl.constexpr):
    """First key, and end of the keys, that a query sees along an axis."""
    first = q // S * S
    if CAUSAL:
        start = tl.maximum(tl.minimum(first + S - 1, length - 1) - K + 1, 0)
        end = q + 1
    else:
        leader = tl.minimum(first + S // 2, length - 1)
        # A group may be empty, where the dilation is larger than the map.
        start = tl.maximum(tl.minimum(leader - K // 2, length - K), 0)
        end = start + K
    return start, end


@triton.jit
def _keys_of(q, length, K: tl.constexpr, S: tl.constexpr, CAUSAL: tl.constexpr, T: tl.constexpr):
    """First key, and end of the keys, that some query of a tile sees."""
    start, _ = _window(q, length, K, S, CAUSAL)
    _, end = _window(tl.minimum(q + T, length) - 1, length, K, S, CAUSAL)
    return start, end


@triton.jit
def _queries_of(k, length, K: tl.constexpr, S: tl.constexpr, CAUSAL: tl.constexpr, T: tl.constexpr):
    """Bounds of the queries that see some key of a tile; those between need not."""
    last = tl.minimum(k + T, length) - 1
    if CAUSAL:
        first, end = k, last + K
    else:
        # A leader comes at most S // 2 after its query, and S - 1 - S // 2 before it.
        first = tl.where(k < K, 0, k - K + K // 2 + 1 - S // 2)
        end = tl.where(last >= length - K, length, last + K // 2 + S - S // 2)
    return tl.maximum(first, 0), tl.minimum(end, length)


@triton.jit
def _along(q, k, length, K: tl.constexpr, S: tl.constexpr, CAUSAL: tl.constexpr):
    """Whether queries see keys along an axis, and the index of their bias."""
    start, end = _window(q, length, K, S, CAUSAL)
    seen = (start <= k) & (k < end) & (k < length) & (q < length)
    return seen, k - q + K - 1


@triton.jit
def _relate(
    q_z, q_y, q_x, k_z, k_y, k_x, l_z, l_y, l_x, p_rpb,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    SZ: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    CZ: tl.constexpr, CY: tl.constexpr, CX: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Whether queries see keys, and their bias to the base 2; one is a row, the other a column."""
    see_z, b_z = _along(q_z, k_z, l_z, KZ, SZ, CZ)
    see_y, b_y = _along(q_y, k_y, l_y, KY, SY, CY)
    see_x, b_x = _along(q_x, k_x, l_x, KX, SX, CX)
    seen = see_z & see_y & see_x
    b_bias = tl.zeros(seen.shape, tl.float32)
    if BIAS:
        at = (b_z * (2 * KY - 1) + b_y) * (2 * KX - 1) + b_x
        b_bias += tl.load(p_rpb + at, mask=seen, other=0.0).to(tl.float32) * LOG2E
    return seen, b_bias


@triton.jit
def _load(p, z, y, x, s_z, s_y, s_x, i_d, mask, D: tl.constexpr):
    """Rows [T, BD] at positions of a map; zeros where masked."""
    at = z.to(tl.int64) * s_z + y.to(tl.int64) * s_y + x.to(tl.int64) * s_x
    return tl.load(p + at[:, None] + i_d, mask=mask[:, None] & (i_d < D), other=0.0)


@triton.jit
def _store(p, b, z, y, x, s_z, s_y, s_x, i_d, mask, D: tl.constexpr):
    """Stores what ``_load`` loads."""
    at = z.to(tl.int64) * s_z + y.to(tl.int64) * s_y + x.to(tl.int64) * s_x
    b = b.to(p.dtype.element_ty)
    tl.store(p + at[:, None] + i_d, b, mask=mask[:, None] & (i_d < D))


@triton.jit
def _load_extra(p, i_l, s_l, i_d, L, D: tl.constexpr):
    """Rows [T, BD] of additional keys or values."""
    at = p + i_l.to(tl.int64)[:, None] * s_l + i_d
    return tl.load(at, mask=(i_l < L)[:, None] & (i_d < D), other=0.0)


@triton.jit
def _accumulate(b_s, b_v, b_max, b_sum, b_out, PRECISION: tl.constexpr):
    """A step of softmax and weighted sum; logits are to the base 2."""
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    # A tile of keys may hold nothing that a query sees.
    b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.exp2(b_s - b_ref[:, None])  # [BR, BC]
    b_decay = tl.exp2(b_max - b_ref)
    b_sum = b_sum * b_decay + tl.sum(b_p, 1)
    b_out = b_out * b_decay[:, None] + dot(b_p.to(b_v.dtype), b_v, PRECISION)
    return b_new, b_sum, b_out


@triton.jit
def neighborhood_attention_fwd_kernel(
    p_q, p_k, p_v, p_rpb, p_xk, p_xv, p_out, p_lse, scale, Z, Y, X, HEADS, L,
    q_b, q_z, q_y, q_x, q_h, k_b, k_z, k_y, k_x, k_h, v_b, v_z, v_y, v_x, v_h,
    xk_b, xk_l, xk_h, xv_b, xv_l, xv_h,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    DZ: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    SZ: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    CZ: tl.constexpr, CY: tl.constexpr, CX: tl.constexpr,
    TZ: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UZ: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BIAS: tl.constexpr, EXTRA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    BR: tl.constexpr = TZ * TY * TX
    BC: tl.constexpr = UZ * UY * UX
    i_h = tl.program_id(1).to(tl.int64)
    i_b, g_z, g_y, g_x, z, y, x = _tile(tl.program_id(0), Z, Y, X, DZ, DY, DX, TZ, TY, TX)
    l_z, l_y, l_x = _length(Z, g_z, DZ), _length(Y, g_y, DY), _length(X, g_x, DX)
    p_q += i_b * q_b + i_h * q_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_rpb += i_h * ((2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1))

    i_d = tl.arange(0, BD)[None, :]
    r_z, r_y, r_x = _within(tl.arange(0, BR), TZ, TY, TX)
    c_z, c_y, c_x = _within(tl.arange(0, BC), UZ, UY, UX)
    r_z, r_y, r_x = z + r_z, y + r_y, x + r_x
    m_r = (r_z < l_z) & (r_y < l_y) & (r_x < l_x)
    a_z, a_y, a_x = r_z * DZ + g_z, r_y * DY + g_y, r_x * DX + g_x
    b_q = _load(p_q, a_z, a_y, a_x, q_z, q_y, q_x, i_d, m_r, D)  # [BR, BD]
    b_out = tl.zeros([BR, BD], tl.float32)
    b_max = tl.full([BR], float("-inf"), tl.float32)
    b_sum = tl.zeros([BR], tl.float32)
    from_z, to_z = _keys_of(z, l_z, KZ, SZ, CZ, TZ)
    from_y, to_y = _keys_of(y, l_y, KY, SY, CY, TY)
    from_x, to_x = _keys_of(x, l_x, KX, SX, CX, TX)
    n_z, n_y = tl.cdiv(to_z - from_z, UZ), tl.cdiv(to_y - from_y, UY)
    n_x = tl.cdiv(to_x - from_x, UX)
    for i in range(0, n_z * n_y * n_x):
        k_z_ = from_z + i // (n_y * n_x) * UZ + c_z
        k_y_ = from_y + i // n_x % n_y * UY + c_y
        k_x_ = from_x + i % n_x * UX + c_x
        m_c = (k_z_ < l_z) & (k_y_ < l_y) & (k_x_ < l_x)
        e_z, e_y, e_x = k_z_ * DZ + g_z, k_y_ * DY + g_y, k_x_ * DX + g_x
        b_k = _load(p_k, e_z, e_y, e_x, k_z, k_y, k_x, i_d, m_c, D)  # [BC, BD]
        b_v = _load(p_v, e_z, e_y, e_x, v_z, v_y, v_x, i_d, m_c, D)
        seen, b_bias = _relate(
            r_z[:, None], r_y[:, None], r_x[:, None], k_z_[None, :], k_y_[None, :], k_x_[None, :],
            l_z, l_y, l_x, p_rpb, KZ, KY, KX, SZ, SY, SX, CZ, CY, CX, BIAS,
        )  # fmt: skip
        b_s = dot(b_q, tl.trans(b_k), PRECISION) * (scale * LOG2E) + b_bias
        b_s = tl.where(seen, b_s, float("-inf"))
        b_max, b_sum, b_out = _accumulate(b_s, b_v, b_max, b_sum, b_out, PRECISION)
    if EXTRA:
        p_xk += i_b * xk_b + i_h * xk_h
        p_xv += i_b * xv_b + i_h * xv_h
        for i in range(0, L, BC):
            i_l = i + tl.arange(0, BC)
            b_k = _load_extra(p_xk, i_l, xk_l, i_d, L, D)
            b_v = _load_extra(p_xv, i_l, xv_l, i_d, L, D)
            b_s = dot(b_q, tl.trans(b_k), PRECISION) * (scale * LOG2E)
            b_s = tl.where((i_l < L)[None, :], b_s, float("-inf"))
            b_max, b_sum, b_out = _accumulate(b_s, b_v, b_max, b_sum, b_out, PRECISION)

    b_sum = tl.where(b_sum > 0, b_sum, 1.0)
    b_out = b_out / b_sum[:, None]
    o_x = tl.cast(HEADS * D, tl.int64)
    p_out += (i_b * Z * Y * X * HEADS + i_h) * D
    _store(p_out, b_out, a_z, a_y, a_x, Y * X * o_x, X * o_x, o_x, i_d, m_r, D)
    i_row = (i_b * HEADS + i_h) * Z * Y * X + (a_z * Y + a_y) * X + a_x
    tl.store(p_lse + i_row, (b_max + tl.log2(b_sum)) / LOG2E, mask=m_r)


@triton.jit
def neighborhood_attention_bwd_kernel_dq(
    p_q, p_k, p_v, p_rpb, p_xk, p_xv, p_out, p_lse, p_grad, p_delta, p_dq,
    scale, Z, Y, X, HEADS, L,
    q_b, q_z, q_y, q_x, q_h, k_b, k_z, k_y, k_x, k_h, v_b, v_z, v_y, v_x, v_h,
    xk_b, xk_l, xk_h, xv_b, xv_l, xv_h,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    DZ: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    SZ: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    CZ: tl.constexpr, CY: tl.constexpr, CX: tl.constexpr,
    TZ: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UZ: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BIAS: tl.constexpr, EXTRA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Also stores the inner products of outputs and their gradients, which the others need."""
    BR: tl.constexpr = TZ * TY * TX
    BC: tl.constexpr = UZ * UY * UX
    i_h = tl.program_id(1).to(tl.int64)
    i_b, g_z, g_y, g_x, z, y, x = _tile(tl.program_id(0), Z, Y, X, DZ, DY, DX, TZ, TY, TX)
    l_z, l_y, l_x = _length(Z, g_z, DZ), _length(Y, g_y, DY), _length(X, g_x, DX)
    p_q += i_b * q_b + i_h * q_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_rpb += i_h * ((2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1))
    i_out = (i_b * Z * Y * X * HEADS + i_h) * D
    o_x = tl.cast(HEADS * D, tl.int64)
    o_y = X * o_x
    o_z = Y * o_y

    i_d = tl.arange(0, BD)[None, :]
    r_z, r_y, r_x = _within(tl.arange(0, BR), TZ, TY, TX)
    c_z, c_y, c_x = _within(tl.arange(0, BC), UZ, UY, UX)
    r_z, r_y, r_x = z + r_z, y + r_y, x + r_x
    m_r = (r_z < l_z) & (r_y < l_y) & (r_x < l_x)
    a_z, a_y, a_x = r_z * DZ + g_z, r_y * DY + g_y, r_x * DX + g_x
    i_row = (i_b * HEADS + i_h) * Z * Y * X + (a_z * Y + a_y) * X + a_x
    b_grad = _load(p_grad + i_out, a_z, a_y, a_x, o_z, o_y, o_x, i_d, m_r, D)  # [BR, BD]
    b_out = _load(p_out + i_out, a_z, a_y, a_x, o_z, o_y, o_x, i_d, m_r, D)
    b_delta = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)
    tl.store(p_delta + i_row, b_delta, mask=m_r)
    b_lse = tl.load(p_lse + i_row, mask=m_r, other=float("inf")) * LOG2E
    b_q = _load(p_q, a_z, a_y, a_x, q_z, q_y, q_x, i_d, m_r, D)
    b_dq = tl.zeros([BR, BD], tl.float32)
    from_z, to_z = _keys_of(z, l_z, KZ, SZ, CZ, TZ)
    from_y, to_y = _keys_of(y, l_y, KY, SY, CY, TY)
    from_x, to_x = _keys_of(x, l_x, KX, SX, CX, TX)
    n_z, n_y = tl.cdiv(to_z - from_z, UZ), tl.cdiv(to_y - from_y, UY)
    n_x = tl.cdiv(to_x - from_x, UX)
    for i in range(0, n_z * n_y * n_x):
        k_z_ = from_z + i // (n_y * n_x) * UZ + c_z
        k_y_ = from_y + i // n_x % n_y * UY + c_y
        k_x_ = from_x + i % n_x * UX + c_x
        m_c = (k_z_ < l_z) & (k_y_ < l_y) & (k_x_ < l_x)
        e_z, e_y, e_x = k_z_ * DZ + g_z, k_y_ * DY + g_y, k_x_ * DX + g_x
        b_k = _load(p_k, e_z, e_y, e_x, k_z, k_y, k_x, i_d, m_c, D)  # [BC, BD]
        b_v = _load(p_v, e_z, e_y, e_x, v_z, v_y, v_x, i_d, m_c, D)
        seen, b_bias = _relate(
            r_z[:, None], r_y[:, None], r_x[:, None], k_z_[None, :], k_y_[None, :], k_x_[None, :],
            l_z, l_y, l_x, p_rpb, KZ, KY, KX, SZ, SY, SX, CZ, CY, CX, BIAS,
        )  # fmt: skip
        b_s = dot(b_q, tl.trans(b_k), PRECISION) * (scale * LOG2E) + b_bias
        b_p = tl.exp2(tl.where(seen, b_s, float("-inf")) - b_lse[:, None])  # [BR, BC]
        b_ds = b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
        b_dq += dot(b_ds.to(b_k.dtype), b_k, PRECISION)
    if EXTRA:
        p_xk += i_b * xk_b + i_h * xk_h
        p_xv += i_b * xv_b + i_h * xv_h
        for i in range(0, L, BC):
            i_l = i + tl.arange(0, BC)
            b_k = _load_extra(p_xk, i_l, xk_l, i_d, L, D)
            b_v = _load_extra(p_xv, i_l, xv_l, i_d, L, D)
            b_s = dot(b_q, tl.trans(b_k), PRECISION) * (scale * LOG2E)
            b_p = tl.exp2(tl.where((i_l < L)[None, :], b_s, float("-inf")) - b_lse[:, None])
            b_ds = b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
            b_dq += dot(b_ds.to(b_k.dtype), b_k, PRECISION)
    _store(p_dq + i_out, b_dq * scale, a_z, a_y, a_x, o_z, o_y, o_x, i_d, m_r, D)


@triton.jit
def neighborhood_attention_bwd_kernel_dkv(
    p_q, p_k, p_v, p_rpb, p_xk, p_xv, p_lse, p_grad, p_delta, p_dk, p_dv,
    scale, Z, Y, X, HEADS, L,
    q_b, q_z, q_y, q_x, q_h, k_b, k_z, k_y, k_x, k_h, v_b, v_z, v_y, v_x, v_h,
    xk_b, xk_l, xk_h, xv_b, xv_l, xv_h,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    DZ: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    SZ: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    CZ: tl.constexpr, CY: tl.constexpr, CX: tl.constexpr,
    TZ: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UZ: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BIAS: tl.constexpr, EXTRA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys are rows here, so that no matrix of weights has to be transposed."""
    BR: tl.constexpr = TZ * TY * TX
    BC: tl.constexpr = UZ * UY * UX
    i_h = tl.program_id(1).to(tl.int64)
    i_b, g_z, g_y, g_x, z, y, x = _tile(tl.program_id(0), Z, Y, X, DZ, DY, DX, TZ, TY, TX)
    l_z, l_y, l_x = _length(Z, g_z, DZ), _length(Y, g_y, DY), _length(X, g_x, DX)
    p_q += i_b * q_b + i_h * q_h
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    p_rpb += i_h * ((2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1))
    i_out = (i_b * Z * Y * X * HEADS + i_h) * D
    i_rows = (i_b * HEADS + i_h) * Z * Y * X
    o_x = tl.cast(HEADS * D, tl.int64)
    o_y = X * o_x
    o_z = Y * o_y

    i_d = tl.arange(0, BD)[None, :]
    r_z, r_y, r_x = _within(tl.arange(0, BR), TZ, TY, TX)
    c_z, c_y, c_x = _within(tl.arange(0, BC), UZ, UY, UX)
    r_z, r_y, r_x = z + r_z, y + r_y, x + r_x
    m_r = (r_z < l_z) & (r_y < l_y) & (r_x < l_x)
    a_z, a_y, a_x = r_z * DZ + g_z, r_y * DY + g_y, r_x * DX + g_x
    b_k = _load(p_k, a_z, a_y, a_x, k_z, k_y, k_x, i_d, m_r, D)  # [BR, BD]
    b_v = _load(p_v, a_z, a_y, a_x, v_z, v_y, v_x, i_d, m_r, D)
    b_dk = tl.zeros([BR, BD], tl.float32)
    b_dv = tl.zeros([BR, BD], tl.float32)
    from_z, to_z = _queries_of(z, l_z, KZ, SZ, CZ, TZ)
    from_y, to_y = _queries_of(y, l_y, KY, SY, CY, TY)
    from_x, to_x = _queries_of(x, l_x, KX, SX, CX, TX)
    n_z, n_y = tl.cdiv(to_z - from_z, UZ), tl.cdiv(to_y - from_y, UY)
    n_x = tl.cdiv(to_x - from_x, UX)
    for i in range(0, n_z * n_y * n_x):
        q_z_ = from_z + i // (n_y * n_x) * UZ + c_z
        q_y_ = from_y + i // n_x % n_y * UY + c_y
        q_x_ = from_x + i % n_x * UX + c_x
        m_c = (q_z_ < l_z) & (q_y_ < l_y) & (q_x_ < l_x)
        e_z, e_y, e_x = q_z_ * DZ + g_z, q_y_ * DY + g_y, q_x_ * DX + g_x
        i_row = i_rows + (e_z * Y + e_y) * X + e_x
        b_q = _load(p_q, e_z, e_y, e_x, q_z, q_y, q_x, i_d, m_c, D)  # [BC, BD]
        b_grad = _load(p_grad + i_out, e_z, e_y, e_x, o_z, o_y, o_x, i_d, m_c, D)
        b_lse = tl.load(p_lse + i_row, mask=m_c, other=float("inf")) * LOG2E
        b_delta = tl.load(p_delta + i_row, mask=m_c, other=0.0)
        seen, b_bias = _relate(
            q_z_[None, :], q_y_[None, :], q_x_[None, :], r_z[:, None], r_y[:, None], r_x[:, None],
            l_z, l_y, l_x, p_rpb, KZ, KY, KX, SZ, SY, SX, CZ, CY, CX, BIAS,
        )  # fmt: skip
        b_s = dot(b_k, tl.trans(b_q), PRECISION) * (scale * LOG2E) + b_bias
        b_p = tl.exp2(tl.where(seen, b_s, float("-inf")) - b_lse[None, :])  # [BR of keys, BC]
        b_dv += dot(b_p.to(b_grad.dtype), b_grad, PRECISION)
        b_ds = b_p * (dot(b_v, tl.trans(b_grad), PRECISION) - b_delta[None, :])
        b_dk += dot(b_ds.to(b_q.dtype), b_q, PRECISION)
    _store(p_dk + i_out, b_dk * scale, a_z, a_y, a_x, o_z, o_y, o_x, i_d, m_r, D)
    _store(p_dv + i_out, b_dv, a_z, a_y, a_x, o_z, o_y, o_x, i_d, m_r, D)


@triton.jit
def neighborhood_attention_bwd_kernel_extra(
    p_q, p_xk, p_xv, p_lse, p_grad, p_delta, p_dxk, p_dxv, scale, Y, X, N, HEADS, L,
    q_b, q_z, q_y, q_x, q_h, xk_b, xk_l, xk_h, xv_b, xv_l, xv_h,
    D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of additional keys and values runs over all queries."""
    i_b, i_h = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_l = tl.program_id(2) * BR + tl.arange(0, BR)
    i_d = tl.arange(0, BD)[None, :]
    b_k = _load_extra(p_xk + i_b * xk_b + i_h * xk_h, i_l, xk_l, i_d, L, D)  # [BR, BD]
    b_v = _load_extra(p_xv + i_b * xv_b + i_h * xv_h, i_l, xv_l, i_d, L, D)
    b_dk = tl.zeros([BR, BD], tl.float32)
    b_dv = tl.zeros([BR, BD], tl.float32)
    p_q += i_b * q_b + i_h * q_h
    p_grad += (i_b * N * HEADS + i_h) * D
    i_rows = (i_b * HEADS + i_h) * N
    for i in range(0, N, BC):
        i_q = i + tl.arange(0, BC)
        m_q = i_q < N
        z, y, x = i_q // (Y * X), i_q // X % Y, i_q % X
        b_q = _load(p_q, z, y, x, q_z, q_y, q_x, i_d, m_q, D)  # [BC, BD]
        b_grad = _load_extra(p_grad, i_q, HEADS * D, i_d, N, D)
        b_lse = tl.load(p_lse + i_rows + i_q, mask=m_q, other=float("inf")) * LOG2E
        b_delta = tl.load(p_delta + i_rows + i_q, mask=m_q, other=0.0)
        b_s = dot(b_k, tl.trans(b_q), PRECISION) * (scale * LOG2E)
        b_p = tl.exp2(b_s - b_lse[None, :])  # [BR of keys, BC of queries]
        b_dv += dot(b_p.to(b_grad.dtype), b_grad, PRECISION)
        b_ds = b_p * (dot(b_v, tl.trans(b_grad), PRECISION) - b_delta[None, :])
        b_dk += dot(b_ds.to(b_q.dtype), b_q, PRECISION)
    at = ((i_b * L + i_l) * HEADS + i_h)[:, None] * D + i_d
    mask = (i_l < L)[:, None] & (i_d < D)
    tl.store(p_dxk + at, (b_dk * scale).to(p_dxk.dtype.element_ty), mask=mask)
    tl.store(p_dxv + at, b_dv.to(p_dxv.dtype.element_ty), mask=mask)


@triton.jit
def neighborhood_attention_bwd_kernel_drpb(
    p_q, p_k, p_v, p_rpb, p_lse, p_grad, p_delta, p_sums, scale, Z, Y, X, HEADS, total, groups,
    q_b, q_z, q_y, q_x, q_h, k_b, k_z, k_y, k_x, k_h, v_b, v_z, v_y, v_x, v_h,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    DZ: tl.constexpr, DY: tl.constexpr, DX: tl.constexpr,
    SZ: tl.constexpr, SY: tl.constexpr, SX: tl.constexpr,
    CZ: tl.constexpr, CY: tl.constexpr, CX: tl.constexpr,
    TZ: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UZ: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    OZ: tl.constexpr, OY: tl.constexpr, OX: tl.constexpr,
    NY: tl.constexpr, NX: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums the gradients of logits between tiles of queries and the tile of keys at one offset.

    Key tiles are at ``O + i U`` from the first query of a tile along each axis, so that the bias of
    an element of the sum is the same for all tiles.
    """
    BR: tl.constexpr = TZ * TY * TX
    BC: tl.constexpr = UZ * UY * UX
    i_g, i_h, i_o = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    p_q += i_h * q_h
    p_k += i_h * k_h
    p_v += i_h * v_h
    p_rpb += i_h * ((2 * KZ - 1) * (2 * KY - 1) * (2 * KX - 1))
    o_x = tl.cast(HEADS * D, tl.int64)
    o_y = X * o_x
    o_z = Y * o_y
    i_d = tl.arange(0, BD)[None, :]
    t_z, t_y, t_x = _within(tl.arange(0, BR), TZ, TY, TX)
    c_z, c_y, c_x = _within(tl.arange(0, BC), UZ, UY, UX)
    b_sum = tl.zeros([BR, BC], tl.float32)
    for i in range(i_g, total, groups):
        i_b, g_z, g_y, g_x, z, y, x = _tile(i, Z, Y, X, DZ, DY, DX, TZ, TY, TX)
        l_z, l_y, l_x = _length(Z, g_z, DZ), _length(Y, g_y, DY), _length(X, g_x, DX)
        k_z0 = z + OZ + i_o // (NY * NX) * UZ
        k_y0 = y + OY + i_o // NX % NY * UY
        k_x0 = x + OX + i_o % NX * UX
        from_z, to_z = _keys_of(z, l_z, KZ, SZ, CZ, TZ)
        from_y, to_y = _keys_of(y, l_y, KY, SY, CY, TY)
        from_x, to_x = _keys_of(x, l_x, KX, SX, CX, TX)
        near_z = (k_z0 < to_z) & (k_z0 + UZ > from_z)
        near_y = (k_y0 < to_y) & (k_y0 + UY > from_y)
        near_x = (k_x0 < to_x) & (k_x0 + UX > from_x)
        if near_z & near_y & near_x:
            r_z, r_y, r_x = z + t_z, y + t_y, x + t_x
            k_z_, k_y_, k_x_ = k_z0 + c_z, k_y0 + c_y, k_x0 + c_x
            m_r = (r_z < l_z) & (r_y < l_y) & (r_x < l_x)
            m_c = (k_z_ >= 0) & (k_y_ >= 0) & (k_x_ >= 0)
            m_c = m_c & (k_z_ < l_z) & (k_y_ < l_y) & (k_x_ < l_x)
            a_z, a_y, a_x = r_z * DZ + g_z, r_y * DY + g_y, r_x * DX + g_x
            e_z, e_y, e_x = k_z_ * DZ + g_z, k_y_ * DY + g_y, k_x_ * DX + g_x
            i_out = (i_b * Z * Y * X * HEADS + i_h) * D
            i_row = (i_b * HEADS + i_h) * Z * Y * X + (a_z * Y + a_y) * X + a_x
            b_q = _load(p_q + i_b * q_b, a_z, a_y, a_x, q_z, q_y, q_x, i_d, m_r, D)
            b_grad = _load(p_grad + i_out, a_z, a_y, a_x, o_z, o_y, o_x, i_d, m_r, D)
            b_k = _load(p_k + i_b * k_b, e_z, e_y, e_x, k_z, k_y, k_x, i_d, m_c, D)
            b_v = _load(p_v + i_b * v_b, e_z, e_y, e_x, v_z, v_y, v_x, i_d, m_c, D)
            b_lse = tl.load(p_lse + i_row, mask=m_r, other=float("inf")) * LOG2E
            b_delta = tl.load(p_delta + i_row, mask=m_r, other=0.0)
            seen, b_bias = _relate(
                r_z[:, None], r_y[:, None], r_x[:, None],
                k_z_[None, :], k_y_[None, :], k_x_[None, :],
                l_z, l_y, l_x, p_rpb, KZ, KY, KX, SZ, SY, SX, CZ, CY, CX, BIAS,
            )  # fmt: skip
            b_s = dot(b_q, tl.trans(b_k), PRECISION) * (scale * LOG2E) + b_bias
            b_p = tl.exp2(tl.where(seen, b_s, float("-inf")) - b_lse[:, None])
            b_sum += b_p * (dot(b_grad, tl.trans(b_v), PRECISION) - b_delta[:, None])
    p_sums += ((i_g * HEADS + i_h) * tl.num_programs(2) + i_o) * (BR * BC)
    tl.store(p_sums + tl.arange(0, BR)[:, None] * BC + tl.arange(0, BC)[None, :], b_sum)


@triton.jit
def neighborhood_attention_bwd_kernel_table(
    p_sums, p_drpb, groups, HEADS,
    KZ: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    TZ: tl.constexpr, TY: tl.constexpr, TX: tl.constexpr,
    UZ: tl.constexpr, UY: tl.constexpr, UX: tl.constexpr,
    OZ: tl.constexpr, OY: tl.constexpr, OX: tl.constexpr,
    NZ: tl.constexpr, NY: tl.constexpr, NX: tl.constexpr,
):  # fmt: skip
    """Gathers what the kernel before summed for one entry of the table."""
    BR: tl.constexpr = TZ * TY * TX
    BC: tl.constexpr = UZ * UY * UX
    i_e, i_h = tl.program_id(0), tl.program_id(1)
    i_m = tl.arange(0, BR)
    z, y, x = _within(i_m, TZ, TY, TX)
    z += i_e // ((2 * KY - 1) * (2 * KX - 1)) - KZ + 1 - OZ
    y += i_e // (2 * KX - 1) % (2 * KY - 1) - KY + 1 - OY
    x += i_e % (2 * KX - 1) - KX + 1 - OX
    mask = (z < NZ * UZ) & (y < NY * UY) & (x < NX * UX)
    tile = (z // UZ * NY + y // UY) * NX + x // UX
    at = (tile * BR + i_m) * BC + (z % UZ * UY + y % UY) * UX + x % UX
    b_sum = tl.zeros([BR], tl.float32)
    for i in range(0, groups):
        i_g = (i * HEADS + i_h).to(tl.int64) * (NZ * NY * NX * BR * BC)
        b_sum += tl.load(p_sums + i_g + at, mask=mask, other=0.0)
    p_drpb += i_h * tl.num_programs(0) + i_e
    tl.store(p_drpb, tl.sum(b_sum, 0).to(p_drpb.dtype.element_ty))


def forward(q, k, v, rpb, extra_k, extra_v, kernel, dilation, stride, causal, scale):
    """Output (B, *spatial, heads, dim) and log-sum-exp of the logits (B, heads, *spatial)."""
    out = q.new_empty(v.shape)
    lse = q.new_empty(q.shape[0], q.shape[-2], *q.shape[1:-2], dtype=torch.float32)
    rules = _rules(q, kernel, dilation, stride, causal)
    arguments = _arguments(q, k, v, rpb, extra_k, extra_v, rules, scale)
    tiles = _tiles(q, rules)
    grid = (_programs(q, rules, tiles), q.shape[-2])
    launch(neighborhood_attention_fwd_kernel, grid, **arguments, **tiles, p_out=out, p_lse=lse)
    return out, lse


def backward(
    grad, q, k, v, rpb, extra_k, extra_v, out, lse, kernel, dilation, stride, causal, scale
):
    """Gradients of q, k, v, rpb, extra_k and extra_v; empty for those that are None."""
    batch, heads = q.shape[0], q.shape[-2]
    dq, dk, dv = (q.new_empty(x.shape) for x in (q, k, v))
    drpb, dextra_k, dextra_v = (
        q.new_empty(0) if x is None else x.new_empty(x.shape) for x in (rpb, extra_k, extra_v)
    )
    delta = torch.empty_like(lse)
    rules = _rules(q, kernel, dilation, stride, causal)
    arguments = _arguments(q, k, v, rpb, extra_k, extra_v, rules, scale)
    arguments.update(p_lse=lse, p_grad=grad.contiguous(), p_delta=delta)
    tiles = _tiles(q, rules)
    grid = (_programs(q, rules, tiles), heads)
    launch(neighborhood_attention_bwd_kernel_dq, grid, **arguments, **tiles, p_out=out, p_dq=dq)
    launch(neighborhood_attention_bwd_kernel_dkv, grid, **arguments, **tiles, p_dk=dk, p_dv=dv)
    if extra_k is not None:
        block = tiles["UZ"] * tiles["UY"] * tiles["UX"]
        launch(
            neighborhood_attention_bwd_kernel_extra,
            (batch, heads, -(-extra_k.shape[1] // block)),
            **_only(neighborhood_attention_bwd_kernel_extra, arguments),
            N=math.prod(q.shape[1:-2]),
            BR=block,
            BC=block,
            num_warps=tiles["num_warps"],
            num_stages=1,
            p_dxk=dextra_k,
            p_dxv=dextra_v,
        )
    if rpb is not None:
        _bias_gradient(q, drpb, rules, arguments, tiles)
    return dq, dk, dv, drpb, dextra_k, dextra_v


def _bias_gradient(q, drpb, rules, arguments, tiles):
    """Gradient of the bias, written to ``drpb``."""
    heads = q.shape[-2]
    offsets, counts = {}, {}
    for axis, (_, size, _, _, causal) in zip("ZYX", rules, strict=True):
        tile, unit = tiles["T" + axis], tiles["U" + axis]
        # Windows away from borders begin with a tile of keys, which they then have fewest of.
        begin = 1 - size if causal else -(size // 2)
        begin -= -(-(size - 1 + begin) // unit) * unit
        offsets["O" + axis] = begin
        counts["N" + axis] = -(-(tile + (0 if causal else size - 1) - begin) // unit)
    total, relative = _programs(q, rules, tiles), math.prod(counts.values())
    groups = max(min(total, PROGRAMS // (heads * relative)), 1)
    block = math.prod(tiles[name + axis] for name in "TU" for axis in "ZYX")
    sums = q.new_empty(groups, heads, relative, block, dtype=torch.float32)
    kernel = neighborhood_attention_bwd_kernel_drpb
    launch(
        kernel,
        (groups, heads, relative),
        **_only(kernel, arguments | tiles | offsets | counts),
        num_warps=tiles["num_warps"],
        num_stages=1,
        p_sums=sums,
        total=total,
        groups=groups,
    )
    kernel = neighborhood_attention_bwd_kernel_table
    launch(
        kernel,
        (drpb[0].numel(), heads),
        **_only(kernel, arguments | tiles | offsets | counts),
        num_warps=1,
        p_sums=sums,
        p_drpb=drpb,
        groups=groups,
    )


def _only(kernel, arguments):
    """Those of the arguments that a kernel has."""
    return {name: value for name, value in arguments.items() if name in kernel.arg_names}


def _rules(q, kernel, dilation, stride, causal):
    """Length, window, dilation, stride and causality of three axes."""
    axes = tuple(zip(q.shape[1:-2], kernel, dilation, stride, causal, strict=True))
    return ((1, 1, 1, 1, False),) * (3 - len(axes)) + axes


def _tiles(q, rules):
    """Positions that queries (or keys) and what they run over have along each axis.

    fp32 is multiplied in three parts, which take registers.
    """
    row = max(triton.next_power_of_2(q.shape[-1]), 16) * q.element_size()
    rows = 64 if row <= 128 else 32 if row <= 256 else 16
    columns = 32 if row <= 128 and q.dtype != torch.float32 else 16
    tiles = {}
    for name, size in (("T", rows), ("U", columns)):
        sides = _sides([math.ceil(length / step) for length, _, step, *_ in rules], size)
        tiles.update({name + axis: side for axis, side in zip("ZYX", sides, strict=True)})
    return {**tiles, "num_warps": 4, "num_stages": 1}


def _sides(lengths, size):
    """Powers of two of a product, nearly equal, but no more than the lengths need."""
    sides = [1, 1, 1]
    most = [triton.next_power_of_2(length) for length in lengths]
    while math.prod(sides) < size:
        # The last axis takes what no other needs.
        growing = [i for i in range(3) if sides[i] < most[i]] or [2]
        axis = min(reversed(growing), key=lambda i: sides[i])
        sides[axis] *= 2
    return sides


def _programs(q, rules, tiles):
    """Tiles of queries of all maps."""
    count = q.shape[0]
    for axis, (length, _, step, *_) in zip("ZYX", rules, strict=True):
        count *= step * math.ceil(math.ceil(length / step) / tiles["T" + axis])
    return count


def _arguments(q, k, v, rpb, extra_k, extra_v, rules, scale):
    """Arguments that the kernels share."""
    q, k, v = with_contiguous_rows(q, k, v)
    dim = q.shape[-1]
    arguments = {
        "p_q": q,
        "p_k": k,
        "p_v": v,
        "p_rpb": q if rpb is None else rpb.contiguous(),
        "scale": float(scale),
        "HEADS": q.shape[-2],
        "D": dim,
        "BD": max(triton.next_power_of_2(dim), 16),
        "BIAS": rpb is not None,
        "EXTRA": extra_k is not None,
        "L": 0 if extra_k is None else extra_k.shape[1],
        "PRECISION": dot_precision(q.dtype),
    }
    for axis, rule in zip("ZYX", rules, strict=True):
        names = (axis, *(letter + axis for letter in "KDSC"))
        arguments.update(zip(names, rule, strict=True))
    for name, x in (("q", q), ("k", k), ("v", v)):
        batch, *spatial, head, _ = x.stride()
        strides = (batch, *(0,) * (3 - len(spatial)), *spatial, head)
        arguments.update({f"{name}_{a}": s for a, s in zip("bzyxh", strides, strict=True)})
    for name, x in (("xk", extra_k), ("xv", extra_v)):
        if x is None:
            x = q.new_empty(0, 0, 0, 0)
        elif x.stride(-1) != 1:
            x = x.contiguous()
        arguments["p_" + name] = x
        arguments.update({f"{name}_{a}": s for a, s in zip("blh", x.stride()[:3], strict=True)})
    return arguments
