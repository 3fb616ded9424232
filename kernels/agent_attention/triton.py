"""Agent attention on GPUs: one attention of agents to keys, one of queries to agents.

Both have the same kernels: rows X attend to columns Y with values V, rows being agents and columns
keys, or rows queries and columns agents. Where the dimension that a program runs along is the long
one, it is split, and partial sums are put together in a fixed order.

Biases in parts are put together once per call, (heads, agents, tokens): a program reads one number
a logit, side by side, where the parts would take six scattered ones.
"""

import torch
import triton
import triton.language as tl

from .._layouts import with_contiguous_rows
from .._triton import dot, dot_precision, launch, load_rows, store_rows
from .reference import AgentBias, dense_bias, interpolation_weights

LOG2E = tl.constexpr(1.4426950408889634)
CHUNK = 1024
"""Most tokens that a program runs along."""
GROUPS = 8
"""Partial sums of the gradient of a bias."""


@triton.jit
def _logits(
    b_s, p_bias, i_r, i_c, s_r, s_c, R, C, scale,
    BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Logits of products [BR, BC] from a row and a column on; -inf beyond the last column.

    They are relative to base 2.
    """
    b_s *= scale * LOG2E
    b_r, b_c = tl.arange(0, BR)[:, None], tl.arange(0, BC)[None, :]
    if BIAS:
        p_bias += tl.cast(i_r, tl.int64) * s_r + tl.cast(i_c, tl.int64) * s_c
        inside = (i_r + b_r < R) & (i_c + b_c < C)
        b_bias = tl.load(p_bias + b_r * s_r + b_c * s_c, mask=inside, other=0.0)
        b_s += b_bias.to(tl.float32) * LOG2E
    return tl.where(i_c + b_c < C, b_s, float("-inf"))


@triton.jit
def _load_row_statistics(p_lse, p_delta, i_bh, i_r, R, BR: tl.constexpr):
    """Log-sum-exp times log2(e) and mean gradients of logits, of rows [BR] of a head."""
    b_r = tl.arange(0, BR)
    at = tl.cast(i_bh, tl.int64) * R + i_r
    b_lse = tl.load(p_lse + at + b_r, mask=i_r + b_r < R, other=float("inf")) * LOG2E
    return b_lse, tl.load(p_delta + at + b_r, mask=i_r + b_r < R, other=0.0)


@triton.jit
def agent_attention_fwd_kernel(
    p_x, p_y, p_v, p_bias, p_out, p_lse, scale, R, C, HEADS, chunk,
    x_b, x_h, x_t, y_b, y_h, y_t, v_b, v_h, v_t, bias_h, bias_r, bias_c,
    out_s, out_b, out_h, out_t,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Outputs of a block of rows, by a chunk of the columns."""
    i_bh, i_r, i_s = tl.program_id(0), tl.program_id(1) * BR, tl.program_id(2)
    i_b, i_h = (i_bh // HEADS).to(tl.int64), (i_bh % HEADS).to(tl.int64)
    p_y += i_b * y_b + i_h * y_h
    p_v += i_b * v_b + i_h * v_h
    p_bias += i_h * bias_h
    b_x = load_rows(p_x + i_b * x_b + i_h * x_h, i_r, x_t, R, BR, D, BD)

    b_out = tl.zeros([BR, BV], tl.float32)
    b_max = tl.full([BR], float("-inf"), tl.float32)
    b_sum = tl.zeros([BR], tl.float32)
    for i_c in range(i_s * chunk, min((i_s + 1) * chunk, C), BC):
        b_y = load_rows(p_y, i_c, y_t, C, BC, D, BD)
        b_v = load_rows(p_v, i_c, v_t, C, BC, DV, BV).to(b_x.dtype)
        b_s = dot(b_x, tl.trans(b_y), PRECISION)
        b_s = _logits(b_s, p_bias, i_r, i_c, bias_r, bias_c, R, C, scale, BR, BC, BIAS)
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        # A bias of -inf may hide all columns.
        b_ref = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_p = tl.exp2(b_s - b_ref[:, None])  # [BR, BC]
        b_decay = tl.exp2(b_max - b_ref)
        b_sum = b_sum * b_decay + tl.sum(b_p, 1)
        b_out = b_out * b_decay[:, None] + dot(b_p.to(b_x.dtype), b_v, PRECISION)
        b_max = b_new

    b_out = b_out / tl.where(b_sum > 0, b_sum, 1.0)[:, None]
    p_out += i_s * out_s + i_b * out_b + i_h * out_h
    store_rows(p_out, b_out, i_r, out_t, R, BR, DV, BV)
    p_lse += (i_s * tl.num_programs(0) + i_bh).to(tl.int64) * R + i_r
    b_r = tl.arange(0, BR)
    tl.store(p_lse + b_r, (b_max + tl.log2(b_sum)) / LOG2E, mask=i_r + b_r < R)


@triton.jit
def agent_attention_bwd_kernel_rows(
    p_x, p_y, p_v, p_bias, p_lse, p_grad, p_delta, p_dx, scale, R, C, HEADS, chunk,
    x_b, x_h, x_t, y_b, y_h, y_t, v_b, v_h, v_t, bias_h, bias_r, bias_c, grad_b, grad_h, grad_t,
    dx_s, dx_b, dx_h, dx_t,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr, WITH_DELTA: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of rows, by a chunk of the columns; and, if wanted, ``delta`` itself."""
    i_bh, i_r, i_s = tl.program_id(0), tl.program_id(1) * BR, tl.program_id(2)
    i_b, i_h = (i_bh // HEADS).to(tl.int64), (i_bh % HEADS).to(tl.int64)
    p_y += i_b * y_b + i_h * y_h
    p_v += i_b * v_b + i_h * v_h
    p_bias += i_h * bias_h
    p_grad += i_b * grad_b + i_h * grad_h
    b_x = load_rows(p_x + i_b * x_b + i_h * x_h, i_r, x_t, R, BR, D, BD)
    b_grad = load_rows(p_grad, i_r, grad_t, R, BR, DV, BV).to(b_x.dtype)
    b_lse, b_delta = _load_row_statistics(p_lse, p_delta, i_bh, i_r, R, BR)
    first, last = i_s * chunk, min((i_s + 1) * chunk, C)

    if WITH_DELTA:
        b_delta = tl.zeros([BR], tl.float32)
        for i_c in range(first, last, BC):
            b_y = load_rows(p_y, i_c, y_t, C, BC, D, BD)
            b_v = load_rows(p_v, i_c, v_t, C, BC, DV, BV).to(b_x.dtype)
            b_s = dot(b_x, tl.trans(b_y), PRECISION)
            b_s = _logits(b_s, p_bias, i_r, i_c, bias_r, bias_c, R, C, scale, BR, BC, BIAS)
            b_dp = dot(b_grad, tl.trans(b_v), PRECISION)
            b_delta += tl.sum(tl.exp2(b_s - b_lse[:, None]) * b_dp, 1)
        b_r = tl.arange(0, BR)
        p_delta += i_bh.to(tl.int64) * R + i_r
        tl.store(p_delta + b_r, b_delta, mask=i_r + b_r < R)

    b_dx = tl.zeros([BR, BD], tl.float32)
    for i_c in range(first, last, BC):
        b_y = load_rows(p_y, i_c, y_t, C, BC, D, BD)
        b_v = load_rows(p_v, i_c, v_t, C, BC, DV, BV).to(b_x.dtype)
        b_s = dot(b_x, tl.trans(b_y), PRECISION)
        b_s = _logits(b_s, p_bias, i_r, i_c, bias_r, bias_c, R, C, scale, BR, BC, BIAS)
        b_dp = dot(b_grad, tl.trans(b_v), PRECISION)
        b_ds = tl.exp2(b_s - b_lse[:, None]) * (b_dp - b_delta[:, None])
        b_dx += dot(b_ds.to(b_x.dtype), b_y, PRECISION)
    p_dx += i_s * dx_s + i_b * dx_b + i_h * dx_h
    store_rows(p_dx, b_dx * scale, i_r, dx_t, R, BR, D, BD)


@triton.jit
def agent_attention_bwd_kernel_columns(
    p_x, p_y, p_v, p_bias, p_lse, p_grad, p_delta, p_dy, p_dv, scale, R, C, HEADS, chunk,
    x_b, x_h, x_t, y_b, y_h, y_t, v_b, v_h, v_t, bias_h, bias_r, bias_c, grad_b, grad_h, grad_t,
    dy_s, dy_b, dy_h, dy_t, dv_s, dv_b, dv_h, dv_t,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of columns and of their values, by a chunk of the rows."""
    i_bh, i_c, i_s = tl.program_id(0), tl.program_id(1) * BC, tl.program_id(2)
    i_b, i_h = (i_bh // HEADS).to(tl.int64), (i_bh % HEADS).to(tl.int64)
    p_x += i_b * x_b + i_h * x_h
    p_grad += i_b * grad_b + i_h * grad_h
    p_bias += i_h * bias_h
    b_y = load_rows(p_y + i_b * y_b + i_h * y_h, i_c, y_t, C, BC, D, BD)
    b_v = load_rows(p_v + i_b * v_b + i_h * v_h, i_c, v_t, C, BC, DV, BV).to(b_y.dtype)
    b_dy = tl.zeros([BC, BD], tl.float32)
    b_dv = tl.zeros([BC, BV], tl.float32)
    for i_r in range(i_s * chunk, min((i_s + 1) * chunk, R), BR):
        b_x = load_rows(p_x, i_r, x_t, R, BR, D, BD)
        b_grad = load_rows(p_grad, i_r, grad_t, R, BR, DV, BV).to(b_y.dtype)
        b_lse, b_delta = _load_row_statistics(p_lse, p_delta, i_bh, i_r, R, BR)
        # Columns are rows here, so that no matrix of weights has to be transposed.
        b_s = dot(b_y, tl.trans(b_x), PRECISION)
        b_s = _logits(b_s, p_bias, i_c, i_r, bias_c, bias_r, C, R, scale, BC, BR, BIAS)
        b_p = tl.exp2(b_s - b_lse[None, :])  # [BC, BR]
        b_ds = b_p * (dot(b_v, tl.trans(b_grad), PRECISION) - b_delta[None, :])
        b_dv += dot(b_p.to(b_y.dtype), b_grad, PRECISION)
        b_dy += dot(b_ds.to(b_y.dtype), b_x, PRECISION)
    p_dy += i_s * dy_s + i_b * dy_b + i_h * dy_h
    p_dv += i_s * dv_s + i_b * dv_b + i_h * dv_h
    store_rows(p_dy, b_dy * scale, i_c, dy_t, C, BC, D, BD)
    store_rows(p_dv, b_dv, i_c, dv_t, C, BC, DV, BV)


@triton.jit
def _product(
    p_a, p_b, i_r, i_c, a_t, b_t, R, C,
    BR: tl.constexpr, BC: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
    DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows [BR, BD] of one matrix times those [BC, BD] of another, a few dimensions at a time."""
    b_s = tl.zeros([BR, BC], tl.float32)
    for k in range(0, BD, BK):
        b_a = load_rows(p_a + k, i_r, a_t, R, BR, D - k, BK)
        b_b = load_rows(p_b + k, i_c, b_t, C, BC, D - k, BK)
        b_s += dot(b_a.to(DTYPE), tl.trans(b_b).to(DTYPE), PRECISION)
    return b_s


@triton.jit
def agent_attention_bwd_kernel_bias(
    p_x, p_y, p_v, p_bias, p_lse, p_grad, p_delta, p_sums, scale, R, C, HEADS, batch, groups,
    x_b, x_h, x_t, y_b, y_h, y_t, v_b, v_h, v_t, bias_h, bias_r, bias_c, grad_b, grad_h, grad_t,
    sums_s, sums_h, sums_r, sums_c,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums the gradient of a block of the bias [BR, BC] over a group of samples."""
    i_h, i_g = tl.program_id(1).to(tl.int64), tl.program_id(2)
    blocks = tl.cdiv(C, BC)
    i_r, i_c = tl.program_id(0) // blocks * BR, tl.program_id(0) % blocks * BC
    p_x += i_h * x_h
    p_y += i_h * y_h
    p_v += i_h * v_h
    p_grad += i_h * grad_h
    p_bias += i_h * bias_h
    DTYPE: tl.constexpr = p_x.dtype.element_ty
    b_sum = tl.zeros([BR, BC], tl.float32)
    for sample in range(i_g, batch, groups):
        i_b = tl.cast(sample, tl.int64)
        b_s = _product(
            p_x + i_b * x_b, p_y + i_b * y_b, i_r, i_c, x_t, y_t, R, C,
            BR, BC, D, BD, BK, DTYPE, PRECISION,
        )  # fmt: skip
        b_s = _logits(b_s, p_bias, i_r, i_c, bias_r, bias_c, R, C, scale, BR, BC, BIAS)
        b_lse, b_delta = _load_row_statistics(p_lse, p_delta, i_b * HEADS + i_h, i_r, R, BR)
        b_dp = _product(
            p_grad + i_b * grad_b, p_v + i_b * v_b, i_r, i_c, grad_t, v_t, R, C,
            BR, BC, DV, BV, BK, DTYPE, PRECISION,
        )  # fmt: skip
        b_sum += tl.exp2(b_s - b_lse[:, None]) * (b_dp - b_delta[:, None])
    p_sums += i_g * sums_s + i_h * sums_h
    p_sums += tl.cast(i_r, tl.int64) * sums_r + tl.cast(i_c, tl.int64) * sums_c
    b_r, b_c = tl.arange(0, BR)[:, None], tl.arange(0, BC)[None, :]
    inside = (i_r + b_r < R) & (i_c + b_c < C)
    tl.store(p_sums + b_r * sums_r + b_c * sums_c, b_sum, mask=inside)


def forward(q, k, v, agents, key_bias, query_bias, scales):
    """Output, the agents' values, and log-sum-exp of the logits of agents and of queries."""
    batch, heads, tokens, _ = q.shape
    dim, splits = v.shape[3], _splits(k)
    values = _floats(q, splits, *agents.shape[:3], dim)
    key_lse = _floats(q, splits, *agents.shape[:3])
    gathering = _arguments(agents, k, v, _dense(key_bias), scales[0])
    gathering |= {**_with_strides(p_out=values), "p_lse": key_lse}
    _run_rows(agent_attention_fwd_kernel, gathering, splits)
    if splits > 1:
        parts, key_lse = key_lse, key_lse.logsumexp(0, keepdim=True)
        values = (values * (parts - key_lse).exp()[..., None]).sum(0, keepdim=True)

    out = v.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    query_lse = _floats(q, batch, heads, tokens)
    bias = _dense(query_bias, transposed=True)
    spreading = _arguments(q, agents, values[0], bias, scales[1])
    spreading |= {**_with_strides(p_out=out[None]), "p_lse": query_lse}
    _run_rows(agent_attention_fwd_kernel, spreading, 1)
    return out, values[0], key_lse[0], query_lse


def backward(grad, values, key_lse, query_lse, q, k, v, agents, key_bias, query_bias, scales):
    """Gradients of q, k, v and agents, and of the parts of both biases."""
    dq, dk, dv = (
        x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
        for x in (q, k, v)
    )
    bias = _dense(query_bias, transposed=True)
    spreading = _arguments(q, agents, values, bias, scales[1])
    spreading |= {**_with_strides(p_grad=grad), "p_lse": query_lse}
    spreading["p_delta"] = torch.empty_like(query_lse)
    outputs = {**_with_strides(p_dx=dq[None]), "WITH_DELTA": True}
    _run_rows(agent_attention_bwd_kernel_rows, spreading | outputs, 1)
    splits = _splits(q)
    query_sums, value_sums = (_floats(q, splits, *x.shape) for x in (agents, values))
    _run_columns(spreading | _with_strides(p_dy=query_sums, p_dv=value_sums), splits)
    query_grads = _bias_gradients(spreading, query_bias, transposed=True)

    value_grad, splits = value_sums.sum(0), _splits(k)
    gathering = _arguments(agents, k, v, _dense(key_bias), scales[0])
    gathering |= {**_with_strides(p_grad=value_grad), "p_lse": key_lse}
    gathering["p_delta"] = (value_grad * values).sum(-1)
    key_sums = _floats(q, splits, *agents.shape)
    outputs = {**_with_strides(p_dx=key_sums), "WITH_DELTA": False}
    _run_rows(agent_attention_bwd_kernel_rows, gathering | outputs, splits)
    _run_columns(gathering | _with_strides(p_dy=dk[None], p_dv=dv[None]), 1)
    key_grads = _bias_gradients(gathering, key_bias)
    dagents = (query_sums.sum(0) + key_sums.sum(0)).to(agents.dtype)
    return (dq, dk, dv, dagents), key_grads, query_grads


def _floats(like, *shape):
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _splits(tokens):
    return -(-tokens.shape[2] // CHUNK)


def _arguments(x, y, v, bias, scale):
    """What all kernels take for rows ``x``, columns ``y`` and values ``v`` of attention."""
    rows, columns, dim, dim_v = x.shape[2], y.shape[2], x.shape[3], v.shape[3]
    strides = (0, 0, 0) if bias is None else bias.stride()
    return {
        **_with_strides(p_x=x, p_y=y, p_v=v),
        "p_bias": x if bias is None else bias,
        **dict(zip(("bias_h", "bias_r", "bias_c"), strides, strict=True)),
        "scale": scale,
        "R": rows,
        "C": columns,
        "HEADS": x.shape[1],
        "D": dim,
        "DV": dim_v,
        "BD": max(triton.next_power_of_2(dim), 16),
        "BV": max(triton.next_power_of_2(dim_v), 16),
        "BIAS": bias is not None,
        "PRECISION": dot_precision(x.dtype),
    }


def _with_strides(**tensors):
    """Tensors ``p_name``, and their strides but the last one as ``name_b``, ``name_h``, ..."""
    arguments = {}
    for name, x in tensors.items():
        (x,) = with_contiguous_rows(x)
        arguments[name] = x
        letters = "sbht"[5 - x.ndim :]
        strides = zip(letters, x.stride()[:-1], strict=True)
        arguments |= {f"{name[2:]}_{letter}": stride for letter, stride in strides}
    return arguments


def _tiles(outer, inner, dtype):
    """Tokens of a program, tokens that it takes at a time, and how it is launched.

    fp32 is multiplied in three parts, which take registers.
    """
    outer, inner = (max(triton.next_power_of_2(tokens), 16) for tokens in (outer, inner))
    most = 16 if dtype == torch.float32 else 32
    return min(outer, 32), min(inner, most), {"num_warps": 4, "num_stages": 1}


def _run_rows(kernel, arguments, splits):
    """Runs a kernel that has programs for blocks of rows, and runs along columns."""
    rows, columns = arguments["R"], arguments["C"]
    outer, inner, options = _tiles(rows, columns, arguments["p_x"].dtype)
    grid = (_sequences(arguments), triton.cdiv(rows, outer), splits)
    chunk = CHUNK if splits > 1 else columns
    launch(kernel, grid, **arguments, **options, BR=outer, BC=inner, chunk=chunk, maxnreg=255)


def _run_columns(arguments, splits):
    rows, columns = arguments["R"], arguments["C"]
    outer, inner, options = _tiles(columns, rows, arguments["p_x"].dtype)
    if arguments["p_x"].dtype == torch.float32 and max(arguments["BD"], arguments["BV"]) > 32:
        outer = 16  # two sums of a block are kept
    grid = (_sequences(arguments), triton.cdiv(columns, outer), splits)
    chunk = CHUNK if splits > 1 else rows
    kernel = agent_attention_bwd_kernel_columns
    launch(kernel, grid, **arguments, **options, BR=inner, BC=outer, chunk=chunk, maxnreg=255)


def _sequences(arguments):
    return arguments["p_x"].shape[0] * arguments["HEADS"]


def _dense(parts, transposed=False):
    """A bias (heads, agents, tokens), or (heads, tokens, agents), or None."""
    rows, _, block, _ = parts
    bias = block if rows is None else dense_bias(AgentBias(*parts))
    return bias.transpose(1, 2) if transposed and bias is not None else bias


def _bias_gradients(arguments, parts, transposed=False):
    """Gradients of the parts of a bias."""
    if not arguments["BIAS"]:
        return parts
    batch, heads, rows, columns = (
        arguments["p_x"].shape[0],
        *(arguments[n] for n in ("HEADS", "R", "C")),
    )
    groups = min(batch, GROUPS)
    shape = (columns, rows) if transposed else (rows, columns)
    sums = _floats(arguments["p_x"], groups, heads, *shape)  # agents before tokens
    strides = sums.stride()
    strides = (*strides[:2], *(strides[:1:-1] if transposed else strides[2:]))
    outer, inner, options = _tiles(rows, columns, arguments["p_x"].dtype)
    launch(
        agent_attention_bwd_kernel_bias,
        (triton.cdiv(rows, outer) * triton.cdiv(columns, inner), heads, groups),
        **arguments,
        **options,
        BR=outer,
        BC=inner,
        BK=min(arguments["BD"], arguments["BV"], 32),
        **dict(zip(("sums_s", "sums_h", "sums_r", "sums_c"), strides, strict=True)),
        p_sums=sums,
        batch=batch,
        groups=groups,
        maxnreg=255,
    )
    return _gradients_of_parts(sums.sum(0), parts)


def _gradients_of_parts(grad, parts):
    """Gradients of a bias's parts by that of the bias (heads, agents, tokens)."""
    rows, columns, block, prefix = parts
    if rows is None:
        return None, None, grad.to(block.dtype), None
    before = 0 if prefix is None else prefix.shape[2]
    area = grad[..., before:].unflatten(2, (rows.shape[2], columns.shape[2]))
    grads = [area.sum(3), area.sum(2), None, None if prefix is None else grad[..., :before]]
    if block is not None:
        # The gradient of torch's own interpolation is not deterministic on GPUs.
        y, x = (
            interpolation_weights(*sides, grad.device)
            for sides in zip(block.shape[2:], area.shape[2:], strict=True)
        )
        grads[2] = y @ area @ x.T
    return [
        x if part is None else x.to(part.dtype).contiguous()
        for x, part in zip(grads, parts, strict=True)
    ]
