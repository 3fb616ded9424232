"""Attentive pooling on GPUs: logits of all tokens, then sums of tokens weighted by their softmax.

Tokens are far wider than what a program can hold, so logits go through memory: they are a fraction
``M / D`` of the tokens, which are read once for each of the two. The backward pass is made of the
same products and their transposes.
"""

import torch
import triton
import triton.language as tl

from .._layouts import with_contiguous_rows
from .._triton import dot, dot_precision, launch, load_rows, store_rows
from .reference import project, project_gradient

__all__ = ["backward", "forward", "project", "project_gradient"]

LOG2E = tl.constexpr(1.4426950408889634)
SPLITS = 16
"""Partial sums of the gradient of queries that all items share."""


@triton.jit
def _product(
    p_a, p_b, i_r, i_c, a_t, b_t, R, C, D,
    BR: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Rows [BR, D] of one matrix times those [BC, D] of another."""
    b_s = tl.zeros([BR, BC], tl.float32)
    for i_d in range(0, D, BD):
        b_a = load_rows(p_a + i_d, i_r, a_t, R, BR, D - i_d, BD)
        b_b = load_rows(p_b + i_d, i_c, b_t, C, BC, D - i_d, BD)
        b_s += dot(b_a, tl.trans(b_b).to(b_a.dtype), PRECISION)
    return b_s


@triton.jit
def _load_logits(p, i_n, i_m, N, M, BN: tl.constexpr, BM: tl.constexpr, other):
    """Tokens [BN, BM] of logits (M, N) from a token and a query on."""
    i_n, i_m = i_n + tl.arange(0, BN)[:, None], i_m + tl.arange(0, BM)[None, :]
    return tl.load(p + i_m.to(tl.int64) * N + i_n, mask=(i_n < N) & (i_m < M), other=other)


@triton.jit
def _store_logits(p, b, i_n, i_m, N, M, BN: tl.constexpr, BM: tl.constexpr):
    i_n, i_m = i_n + tl.arange(0, BN)[:, None], i_m + tl.arange(0, BM)[None, :]
    tl.store(p + i_m.to(tl.int64) * N + i_n, b, mask=(i_n < N) & (i_m < M))


@triton.jit
def multi_query_pool_fwd_kernel_logits(
    p_x, p_q, p_logits, scale, N, M, D, x_b, x_t, q_b, q_t,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of a block of tokens and one of queries."""
    i_b, i_n, i_m = tl.program_id(0).to(tl.int64), tl.program_id(1) * BN, tl.program_id(2) * BM
    b_s = _product(
        p_x + i_b * x_b, p_q + i_b * q_b, i_n, i_m, x_t, q_t, N, M, D, BN, BM, BD, PRECISION
    )
    _store_logits(p_logits + i_b * M * N, b_s * scale, i_n, i_m, N, M, BN, BM)


@triton.jit
def multi_query_pool_fwd_kernel_sums(
    p_v, p_logits, p_out, p_lse, N, M, E, v_b, v_t,
    BN: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some dimensions of the sums of an item's values by a block of queries.

    Weights are a factor [tokens, queries] throughout, and sums are transposed: tensor cores want
    the many rows on the left, and queries are few.
    """
    i_b, i_e, i_m = tl.program_id(0).to(tl.int64), tl.program_id(1) * BE, tl.program_id(2) * BM
    p_v += i_b * v_b + i_e
    p_logits += i_b * M * N
    b_out = tl.zeros([BE, BM], tl.float32)
    b_max = tl.full([BM], float("-inf"), tl.float32)
    b_sum = tl.zeros([BM], tl.float32)
    for i_n in range(0, N, BN):
        b_v = load_rows(p_v, i_n, v_t, N, BN, E - i_e, BE)
        b_s = _load_logits(p_logits, i_n, i_m, N, M, BN, BM, 0.0) * LOG2E
        b_s = tl.where(i_n + tl.arange(0, BN)[:, None] < N, b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 0))
        b_p = tl.exp2(b_s - b_new[None, :])  # [BN, BM]
        b_decay = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_decay + tl.sum(b_p, 0)
        b_out = b_out * b_decay[None, :] + dot(tl.trans(b_v), b_p.to(b_v.dtype), PRECISION)
        b_max = b_new
    p_out += i_b * M * E + i_e
    store_rows(p_out, tl.trans(b_out / b_sum[None, :]), i_m, E, M, BM, E - i_e, BE)
    if i_e == 0:
        at = i_m + tl.arange(0, BM)
        tl.store(p_lse + i_b * M + at, (b_max + tl.log2(b_sum)) / LOG2E, mask=at < M)


@triton.jit
def multi_query_pool_bwd_kernel_logits(
    p_v, p_grad, p_logits, p_lse, p_delta, p_ds, N, M, E, v_b, v_t, grad_b, grad_t,
    BN: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of the logits of a block of tokens and one of queries."""
    i_b, i_n, i_m = tl.program_id(0).to(tl.int64), tl.program_id(1) * BN, tl.program_id(2) * BM
    b_dp = _product(
        p_v + i_b * v_b, p_grad + i_b * grad_b, i_n, i_m, v_t, grad_t, N, M, E,
        BN, BM, BE, PRECISION,
    )  # fmt: skip
    at = i_b * M + i_m + tl.arange(0, BM)
    inside = i_m + tl.arange(0, BM) < M
    b_lse = tl.load(p_lse + at, mask=inside, other=0.0)
    b_delta = tl.load(p_delta + at, mask=inside, other=0.0)
    b_s = _load_logits(p_logits + i_b * M * N, i_n, i_m, N, M, BN, BM, 0.0)
    b_ds = tl.exp2((b_s - b_lse[None, :]) * LOG2E) * (b_dp - b_delta[None, :])
    _store_logits(p_ds + i_b * M * N, b_ds, i_n, i_m, N, M, BN, BM)


@triton.jit
def multi_query_pool_bwd_kernel_queries(
    p_x, p_ds, p_dq, scale, N, M, D, batch, splits, x_b, x_t,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some dimensions of the gradients of a block of queries, of a share of the items."""
    i_s, i_d, i_m = tl.program_id(0), tl.program_id(1) * BD, tl.program_id(2) * BM
    b_dq = tl.zeros([BD, BM], tl.float32)
    for item in range(i_s, batch, splits):
        i_b = tl.cast(item, tl.int64)
        for i_n in range(0, N, BN):
            b_x = load_rows(p_x + i_b * x_b + i_d, i_n, x_t, N, BN, D - i_d, BD)
            b_ds = _load_logits(p_ds + i_b * M * N, i_n, i_m, N, M, BN, BM, 0.0)
            b_dq += dot(tl.trans(b_x), b_ds.to(b_x.dtype), PRECISION)
    p_dq += i_s.to(tl.int64) * M * D + i_d
    store_rows(p_dq, tl.trans(b_dq) * scale, i_m, D, M, BM, D - i_d, BD)


@triton.jit
def multi_query_pool_bwd_kernel_tokens(
    p_ds, p_q, p_logits, p_lse, p_grad, p_dx, scale, N, M, D,
    q_b, q_t, grad_b, grad_t,
    KEYS: tl.constexpr, VALUES: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some dimensions of the gradients of a block of tokens, as keys, as values, or as both."""
    i_b, i_n, i_d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BN, tl.program_id(2) * BD
    p_q += i_b * q_b + i_d
    p_grad += i_b * grad_b + i_d
    b_dx = tl.zeros([BN, BD], tl.float32)
    for i_m in range(0, M, BM):
        if KEYS:
            b_q = load_rows(p_q, i_m, q_t, M, BM, D - i_d, BD)
            b_ds = _load_logits(p_ds + i_b * M * N, i_n, i_m, N, M, BN, BM, 0.0) * scale
            b_dx += dot(b_ds.to(b_q.dtype), b_q, PRECISION)
        if VALUES:
            b_grad = load_rows(p_grad, i_m, grad_t, M, BM, D - i_d, BD)
            at = i_m + tl.arange(0, BM)
            b_lse = tl.load(p_lse + i_b * M + at, mask=at < M, other=float("inf"))
            b_s = _load_logits(p_logits + i_b * M * N, i_n, i_m, N, M, BN, BM, 0.0)
            b_p = tl.exp2((b_s - b_lse[None, :]) * LOG2E)
            b_dx += dot(b_p.to(b_grad.dtype), b_grad, PRECISION)
    store_rows(p_dx + i_b * N * D + i_d, b_dx, i_n, D, N, BN, D - i_d, BD)


def forward(x, values, queries, scale, save):
    """Pooled values (B, M, E), and logits (B, M, N) with their log-sum-exp, if to be saved."""
    x, values, queries = _with_contiguous_rows(x, values, queries)
    batch, tokens, dim = x.shape
    count, wide = queries.shape[-2], values.shape[-1]
    logits = _floats(x, batch, count, tokens)
    lse = _floats(x, batch, count)
    out = values.new_empty(batch, count, wide)
    shape, of_tokens, of_queries = _blocks(x, queries)
    launch(
        multi_query_pool_fwd_kernel_logits,
        (batch, of_tokens, of_queries),
        **_matrices(p_x=x, p_q=queries),
        **shape,
        p_logits=logits,
        scale=scale,
        D=dim,
        BD=_dims(x),
    )
    launch(
        multi_query_pool_fwd_kernel_sums,
        (batch, triton.cdiv(wide, _dims(values)), of_queries),
        **_matrices(p_v=values),
        **shape,
        p_logits=logits,
        p_out=out,
        p_lse=lse,
        E=wide,
        BE=_dims(values),
    )
    return (out, logits, lse) if save else (out, logits.new_empty(0), lse.new_empty(0))


def backward(grad, x, values, queries, out, logits, lse, scale, needs):
    """Gradients of x, values and queries where needed; x's has that of the values if x are both."""
    shared = values is None
    x, values, queries, grad = _with_contiguous_rows(x, values, queries, grad)
    batch, _, dim = x.shape
    count, wide = queries.shape[-2], values.shape[-1]
    need_x, need_values, need_queries = needs
    shape, of_tokens, of_queries = _blocks(x, queries)
    ds = torch.empty_like(logits)
    launch(
        multi_query_pool_bwd_kernel_logits,
        (batch, of_tokens, of_queries),
        **_matrices(p_v=values, p_grad=grad),
        **shape,
        p_logits=logits,
        p_lse=lse,
        p_delta=(grad.float() * out.float()).sum(-1),
        p_ds=ds,
        E=wide,
        BE=_dims(values),
    )
    dqueries = queries.new_empty(0)
    if need_queries:
        splits = min(batch, SPLITS) if queries.ndim == 2 else batch
        sums = _floats(x, splits, count, dim)
        launch(
            multi_query_pool_bwd_kernel_queries,
            (splits, triton.cdiv(dim, _dims(x)), of_queries),
            **_matrices(p_x=x),
            **shape,
            p_ds=ds,
            p_dq=sums,
            scale=scale,
            batch=batch,
            splits=splits,
            D=dim,
            BD=_dims(x),
        )
        dqueries = (sums.sum(0) if queries.ndim == 2 else sums).to(queries.dtype)

    def tokens_gradient(like, keys, also_values):
        dim = like.shape[2]
        result = like.new_empty(like.shape)
        launch(
            multi_query_pool_bwd_kernel_tokens,
            (batch, of_tokens, triton.cdiv(dim, _dims(like))),
            **_matrices(p_q=queries, p_grad=grad),
            **shape,
            p_ds=ds,
            p_logits=logits,
            p_lse=lse,
            p_dx=result,
            scale=scale,
            D=dim,
            BD=_dims(like),
            KEYS=keys,
            VALUES=also_values,
        )
        return result

    dx = tokens_gradient(x, True, shared) if need_x else x.new_empty(0)
    dvalues = tokens_gradient(values, False, True) if need_values else values.new_empty(0)
    return dx, dvalues, dqueries


def _floats(like, *shape):
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _with_contiguous_rows(x, values, *others):
    values = x if values is None else values
    return with_contiguous_rows(x, values, *others)


def _matrices(**tensors):
    """Tensors ``p_name`` and their strides; queries that all items share have none of the batch."""
    arguments = dict(tensors)
    for name, x in tensors.items():
        arguments[f"{name[2:]}_b"] = x.stride(0) if x.ndim == 3 else 0
        arguments[f"{name[2:]}_t"] = x.stride(-2)
    return arguments


def _blocks(x, queries):
    """What all kernels take, and the numbers of blocks of tokens and of queries."""
    tokens, count = x.shape[1], queries.shape[-2]
    of_tokens = 32 if x.dtype == torch.float32 else 64
    of_queries = min(max(triton.next_power_of_2(count), 16), 32)
    shape = {
        "N": tokens,
        "M": count,
        "BN": of_tokens,
        "BM": of_queries,
        "PRECISION": dot_precision(x.dtype),
        "maxnreg": 255,
    }
    return shape, triton.cdiv(tokens, of_tokens), triton.cdiv(count, of_queries)


def _dims(x):
    """Dimensions of a block."""
    most = 32 if x.dtype == torch.float32 else 64
    return min(max(triton.next_power_of_2(x.shape[2]), 16), most)
