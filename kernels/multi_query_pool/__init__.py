"""Pooling of tokens by learned queries (Efficient Probing, arXiv 2506.10178, section 3)."""

from typing import Any

import torch

from .._library import register_operator
from ..dispatch import cast_for_autocast, choose, cpu_can_run, triton_can_run
from . import reference

__all__ = ["multi_query_pool", "query_attention"]


def multi_query_pool(
    x: torch.Tensor,
    queries: torch.Tensor,
    value_weight: torch.Tensor | None = None,
    value_bias: torch.Tensor | None = None,
    scale: float | None = None,
    values: torch.Tensor | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Pools tokens once for each query, by the softmax of their inner products with it.

    With a value projection, query j of M pools the j-th of M contiguous groups of its outputs, and
    the groups are concatenated. The projection is applied to the pooled tokens, not to all of them,
    which by linearity is the same: ``sum_n a_n W x_n = W sum_n a_n x_n``.

    Other attentive poolings come down to this one. Attention of a query by H heads, with keys
    ``W_h x``, is that of the H queries ``W_h^T q_h`` (a key bias changes no softmax), and its value
    projection is the grouped one. Queries made from the tokens of an item differ by item. A value
    projection that heads share is applied to what comes without one, as are others.

    The backward pass is deterministic. It computes a gradient of ``x`` only where one is wanted:
    features are often frozen.

    Args:
        x: Tokens, (B, N, D).
        queries: Queries, (M, D), or (B, M, D), different ones for each item.
        value_weight: Value projection, (D_out, E), where M divides D_out.
        value_bias: Its bias, (D_out,).
        scale: Factor of the logits; ``D ** -0.5`` by default.
        values: What is pooled, (B, N, E), instead of ``x``.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        (B, D_out), or (B, M, E) without a value projection.

    Raises:
        ValueError: If shapes or dtypes do not fit each other.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    _check(x, queries)
    _check_values(x, queries, values, value_weight, value_bias)
    x, queries, values, value_weight = tensors = cast_for_autocast(x, queries, values, value_weight)
    scale = x.shape[-1] ** -0.5 if scale is None else scale
    impl = choose(
        "multi_query_pool",
        impl,
        {"triton": lambda: triton_can_run(*tensors), "cpu": lambda: cpu_can_run(*tensors)},
    )
    if impl == "reference":
        out = reference.multi_query_pool(x, values, queries, scale)
        out = out if value_weight is None else reference.project(out, value_weight)
    else:
        # What the gradient needs is kept only where there will be one.
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        out = _operator(x, values, queries, value_weight, scale, save, impl)[0]
    return out if value_bias is None else out + value_bias.to(out.dtype)


def query_attention(
    x: torch.Tensor, queries: torch.Tensor, scale: float | None = None
) -> torch.Tensor:
    """Weights that ``multi_query_pool`` gives to tokens, to look at.

    Args:
        x: Tokens, (B, N, D).
        queries: Queries, (M, D) or (B, M, D).
        scale: Factor of the logits; ``D ** -0.5`` by default.

    Returns:
        (B, M, N), which sum to 1 over the tokens, in float32 or more.

    Raises:
        ValueError: If shapes or dtypes do not fit each other.
    """
    _check(x, queries)
    return reference.query_attention(x, queries, x.shape[-1] ** -0.5 if scale is None else scale)


def _check(x: torch.Tensor, queries: torch.Tensor) -> None:
    if x.ndim != 3 or x.shape[1] == 0:
        raise ValueError(f"x must be (B, N, D) with at least one token; got {tuple(x.shape)}")
    batches = () if queries.ndim == 2 else x.shape[:1]
    if queries.ndim not in (2, 3) or queries.shape != (*batches, queries.shape[-2], x.shape[2]):
        raise ValueError(
            f"queries must be (M, D) or (B, M, D) for x {tuple(x.shape)}; "
            f"got {tuple(queries.shape)}"
        )
    if queries.shape[-2] == 0:
        raise ValueError("queries must be at least one; got none")


def _check_values(
    x: torch.Tensor,
    queries: torch.Tensor,
    values: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    if values is not None and (values.ndim != 3 or values.shape[:2] != x.shape[:2]):
        raise ValueError(
            f"values must be (B, N, E) for x {tuple(x.shape)}; got {tuple(values.shape)}"
        )
    if weight is None:
        if bias is not None:
            raise ValueError("value_bias needs a value_weight")
        return
    count, wide = queries.shape[-2], (x if values is None else values).shape[2]
    if weight.ndim != 2 or weight.shape[1] != wide or weight.shape[0] % count:
        raise ValueError(
            f"value_weight must be (D_out, {wide}) with D_out divisible by the {count} queries; "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"value_bias must be ({weight.shape[0]},); got {tuple(bias.shape)}")


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _forward(x, values, queries, weight, scale, save, impl):
    module = _implementation(impl)
    out, logits, lse = module.forward(x, values, queries, scale, save)
    if weight is None:
        return out, out.new_empty(0), logits, lse
    return module.project(out, weight), out if save else out.new_empty(0), logits, lse


def _fake_forward(x, values, queries, weight, scale, save, impl):
    batch, tokens, _ = x.shape
    count = queries.shape[-2]
    source = x if values is None else values
    pooled = batch, count, source.shape[2]
    projects = weight is not None
    return (
        source.new_empty((batch, weight.shape[0]) if projects else pooled),
        source.new_empty(pooled if projects and save else 0),
        x.new_empty((batch, count, tokens) if save else 0, dtype=torch.float32),
        x.new_empty((batch, count) if save else 0, dtype=torch.float32),
    )


def _backward(grad, x, values, queries, weight, pooled, logits, lse, scale, needs, impl):
    module = _implementation(impl)
    *of_tokens, need_weight = needs
    dweight = grad.new_empty(0)
    if weight is not None:
        needed = any(of_tokens), need_weight
        grad, dweight = module.project_gradient(grad, pooled, weight, needed)
    if not any(of_tokens):
        return *(t.new_empty(0) for t in (x, pooled, queries)), dweight
    grads = module.backward(grad, x, values, queries, pooled, logits, lse, scale, of_tokens)
    return *grads, dweight


def _fake_backward(grad, x, values, queries, weight, pooled, logits, lse, scale, needs, impl):
    values = x if values is None else values
    weight = grad if weight is None else weight
    return tuple(
        t.new_empty(t.shape if need else 0)
        for t, need in zip((x, values, queries, weight), needs, strict=True)
    )


def _setup_context(ctx, inputs, output):
    x, values, queries, weight, ctx.scale, ctx.save, ctx.impl = inputs
    out, pooled, logits, lse = output
    ctx.save_for_backward(
        x, values, queries, weight, out if weight is None else pooled, logits, lse
    )
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, *_):
    if grad is None:
        return (None,) * 7
    if not ctx.save:
        raise RuntimeError("multi_query_pool was called without save, and kept nothing to go back")
    needs = list(ctx.needs_input_grad[:4])
    grads = _backward_operator(grad, *ctx.saved_tensors, ctx.scale, needs, ctx.impl)
    return *(g if need else None for g, need in zip(grads, needs, strict=True)), None, None, None


_backward_operator = register_operator(
    "multi_query_pool_backward(Tensor grad, Tensor x, Tensor? values, Tensor queries, "
    "Tensor? weight, Tensor pooled, Tensor logits, Tensor lse, float scale, bool[4] needs, str impl"
    ") -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_operator = register_operator(
    "multi_query_pool(Tensor x, Tensor? values, Tensor queries, Tensor? weight, float scale, "
    "bool save, str impl) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
