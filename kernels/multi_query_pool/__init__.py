"""Pooling of tokens by learned queries (Efficient Probing, arXiv 2506.10178, section 3)."""

import torch

from .._library import register_operator
from ..dispatch import cast_for_autocast, choose, cpu_can_run
from . import reference

__all__ = ["multi_query_pool"]


def multi_query_pool(
    x: torch.Tensor,
    queries: torch.Tensor,
    value_weight: torch.Tensor | None = None,
    value_bias: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Pools tokens once for each query, by the softmax of their inner products with it.

    With a value projection, the query j of M pools the j-th of M contiguous groups of its outputs,
    and the groups are concatenated. The projection is applied to the pooled tokens, not to all of
    them, which by linearity is the same: ``sum_n a_n W x_n = W sum_n a_n x_n``.

    The backward pass is deterministic. It computes a gradient of ``x`` only where one is wanted.

    Args:
        x: Tokens, (B, N, D).
        queries: Queries, (M, D), or (B, M, D), different ones for each item.
        value_weight: Value projection, (D_out, D), where M divides D_out.
        value_bias: Its bias, (D_out,).
        scale: Factor of the logits; ``D ** -0.5`` by default.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        (B, D_out), or (B, M, D) without a value projection.

    Raises:
        ValueError: If a shape is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    _check(x, queries, value_weight, value_bias)
    x, queries = cast_for_autocast(x, queries)
    scale = x.shape[-1] ** -0.5 if scale is None else scale
    impl = choose("multi_query_pool", impl, {"cpu": lambda: cpu_can_run(x, queries)})
    if impl == "reference":
        pooled = reference.multi_query_pool(x, queries, scale)
    else:
        differentiable = torch.is_grad_enabled() and (x.requires_grad or queries.requires_grad)
        pooled = _operator(x, queries, scale, differentiable)[0]
    if value_weight is None:
        return pooled
    (weight,) = cast_for_autocast(value_weight)
    weight = weight.unflatten(0, (queries.shape[-2], -1))  # (M, D_out / M, D)
    out = torch.einsum("bmd,mcd->bmc", pooled, weight).flatten(1)
    return out if value_bias is None else out + value_bias.to(out.dtype)


def _check(
    x: torch.Tensor,
    queries: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"x must be (B, N, D) with at least one token; got {tuple(x.shape)}")
    batches = () if queries.ndim == 2 else x.shape[:1]
    if queries.ndim not in (2, 3) or queries.shape != (*batches, queries.shape[-2], x.shape[2]):
        raise ValueError(
            f"queries must be (M, D) or (B, M, D) for x {tuple(x.shape)}; "
            f"got {tuple(queries.shape)}"
        )
    if weight is None:
        if bias is not None:
            raise ValueError("value_bias needs a value_weight")
        return
    if weight.ndim != 2 or weight.shape[1] != x.shape[2] or weight.shape[0] % queries.shape[-2]:
        raise ValueError(
            f"value_weight must be (D_out, {x.shape[2]}) with D_out divisible by the "
            f"{queries.shape[-2]} queries; got {tuple(weight.shape)}"
        )


def _forward(x, queries, scale, save):
    from . import cpu

    return cpu.forward(x, x, queries, scale, False, save)


def _fake_forward(x, queries, scale, save):
    batch, tokens, dim = x.shape
    count = queries.shape[-2]
    return (
        x.new_empty(batch, count, dim),
        x.new_empty((batch, count, tokens) if save else 0, dtype=torch.float32),
        x.new_empty((batch, count) if save else 0, dtype=torch.float32),
    )


def _backward(grad, x, queries, out, logits, lse, scale, need_x, need_queries):
    from . import cpu

    needs = (need_x, False, need_queries)
    dx, _, dqueries = cpu.backward(grad, x, None, queries, out, logits, lse, scale, False, needs)
    return dx, dqueries


def _fake_backward(grad, x, queries, out, logits, lse, scale, need_x, need_queries):
    return (
        x.new_empty(x.shape if need_x else 0),
        queries.new_empty(queries.shape if need_queries else 0),
    )


def _setup_context(ctx, inputs, output):
    x, queries, ctx.scale, _ = inputs
    ctx.save_for_backward(x, queries, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, *_):
    if grad is None:
        return (None,) * 4
    need_x, need_queries = ctx.needs_input_grad[:2]
    dx, dqueries = _backward_operator(grad, *ctx.saved_tensors, ctx.scale, need_x, need_queries)
    return dx if need_x else None, dqueries if need_queries else None, None, None


_backward_operator = register_operator(
    "multi_query_pool_backward(Tensor grad, Tensor x, Tensor queries, Tensor out, Tensor logits, "
    "Tensor lse, float scale, bool need_x, bool need_queries) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_operator = register_operator(
    "multi_query_pool(Tensor x, Tensor queries, float scale, bool save) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
