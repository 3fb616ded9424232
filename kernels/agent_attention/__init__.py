"""Agent attention (Agent Attention, arXiv 2312.08874, section 3)."""

from typing import Any

import torch

from .._library import register_operator
from .._packing import empty_parts
from ..dispatch import cast_for_autocast, choose, cpu_can_run, triton_can_run
from . import reference
from .reference import AgentBias

__all__ = ["AgentBias", "agent_attention"]

NO_BIAS = (None, None, None, None)


def agent_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agents: torch.Tensor,
    *,
    key_bias: torch.Tensor | AgentBias | None = None,
    query_bias: torch.Tensor | AgentBias | None = None,
    scale: float | tuple[float, float] | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Attends from queries to keys by way of a few agents.

    The agents gather from all keys, and the queries from the agents (paper, equation 4, without
    the depthwise convolution of the values)::

        values = softmax(scale * agents kᵀ + key_bias) v
        out = softmax(scale * q agentsᵀ + query_bias) values

    Both softmaxes are fused: no matrix of tokens by agents is stored.

    Biases are the same for the whole batch. Given as an ``AgentBias`` they are never put together
    per sample: on the CPU not at all, on GPUs once per call.

    The backward pass is deterministic.

    Args:
        q: Queries, (B, heads, N, dim).
        k: Keys, (B, heads, M, dim).
        v: Values, (B, heads, M, dim_v).
        agents: Agent tokens, (B, heads, n, dim), such as pooled queries.
        key_bias: Added to the logits of agents and keys: dense, (heads, n, M), or an ``AgentBias``
            over the map of keys.
        query_bias: Added to the logits of queries and agents: dense, (heads, N, n), or an
            ``AgentBias`` over the map of queries.
        scale: Factor of the logits, or one for agents and keys and one for queries and agents;
            ``dim ** -0.5`` by default.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        (B, heads, N, dim_v), in the dtype of ``v``. Fused implementations lay it out as
        (B, N, heads, dim_v), so that heads can be merged without a copy.

    Raises:
        ValueError: If a shape is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    _check(q, k, v, agents)
    key_parts = _bias_parts("key_bias", key_bias, agents, k, tokens_last=True)
    query_parts = _bias_parts("query_bias", query_bias, agents, q, tokens_last=False)
    q, k, v, agents = cast_for_autocast(q, k, v, agents)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scales = scale if isinstance(scale, tuple) else (scale, scale)
    tensors = (q, k, v, agents, *key_parts, *query_parts)
    impl = choose(
        "agent_attention",
        impl,
        {
            "triton": lambda: triton_can_run(*tensors),
            "cpu": lambda: cpu_can_run(*tensors),
        },
    )
    if impl == "reference":
        return reference.agent_attention(q, k, v, agents, key_bias, query_bias, scales)
    return _operator(*tensors, *scales, impl)[0]


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, agents: torch.Tensor) -> None:
    fits = all(
        x.ndim == 4 and x.shape[:2] == q.shape[:2] and x.shape[3] == q.shape[3]
        for x in (q, k, agents)
    )
    if not fits:
        raise ValueError(
            "q, k and agents must be (B, heads, tokens, dim) and agree in B, heads and dim; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, agents {tuple(agents.shape)}"
        )
    if v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"v must be (B, heads, M, dim_v) as k is; got k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if k.shape[2] == 0 or agents.shape[2] == 0:
        raise ValueError(
            "there must be at least one key and one agent to attend to; got "
            f"k {tuple(k.shape)}, agents {tuple(agents.shape)}"
        )


def _bias_parts(
    name: str,
    bias: torch.Tensor | AgentBias | None,
    agents: torch.Tensor,
    tokens: torch.Tensor,
    tokens_last: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Rows, columns, block and prefix; a dense bias is a block (heads, agents, tokens) alone."""
    if bias is None:
        return NO_BIAS
    heads, count, length = agents.shape[1], agents.shape[2], tokens.shape[2]
    if not isinstance(bias, AgentBias):
        shape = (heads, count, length) if tokens_last else (heads, length, count)
        if bias.shape != shape:
            raise ValueError(f"{name} must be {shape} or an AgentBias; got {tuple(bias.shape)}")
        return None, None, bias if tokens_last else bias.transpose(1, 2), None
    for part, ndim in (("rows", 3), ("columns", 3), ("block", 4), ("prefix", 3)):
        x = getattr(bias, part)
        if x is not None and (x.ndim != ndim or x.shape[:2] != (heads, count)):
            raise ValueError(
                f"{name}.{part} must have {ndim} dimensions, first {heads} heads and {count} "
                f"agents; got {tuple(x.shape)}"
            )
    before = 0 if bias.prefix is None else bias.prefix.shape[2]
    height, width = bias.rows.shape[2], bias.columns.shape[2]
    if before + height * width != length:
        raise ValueError(
            f"{name} is of {before} tokens and a map of {height} x {width}, which are not the "
            f"{length} tokens of {'k' if tokens_last else 'q'}"
        )
    return tuple(bias)


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _forward(q, k, v, agents, *rest):
    *biases, key_scale, query_scale, impl = rest
    return _implementation(impl).forward(
        q, k, v, agents, biases[:4], biases[4:], (key_scale, query_scale)
    )


def _fake_forward(q, k, v, agents, *rest):
    batch, heads, count = agents.shape[:3]
    tokens, dim = q.shape[2], v.shape[3]
    return (
        v.new_empty(batch, tokens, heads, dim).transpose(1, 2),
        q.new_empty(batch, heads, count, dim, dtype=torch.float32),
        q.new_empty(batch, heads, count, dtype=torch.float32),
        q.new_empty(batch, heads, tokens, dtype=torch.float32),
    )


def _backward(grad, values, key_lse, query_lse, q, k, v, agents, *rest, **options):
    *biases, key_scale, query_scale, impl = rest
    grads, key_grads, query_grads = _implementation(impl).backward(
        grad,
        *(values, key_lse, query_lse),
        *(q, k, v, agents),
        *(biases[:4], biases[4:]),
        (key_scale, query_scale),
        **options,
    )
    return *grads, *(q.new_empty(0) if x is None else x for x in (*key_grads, *query_grads))


def _backward_directly(*args):
    """``_backward`` with gradients of parts of one tensor as parts of one, which no fake tells."""
    return _backward(*args, **({"allocate": empty_parts} if args[-1] == "cpu" else {}))


def _fake_backward(grad, values, key_lse, query_lse, q, k, v, agents, *rest):
    by_token = (
        x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
        for x in (q, k, v)
    )
    parts = (q.new_empty(0) if x is None else x.new_empty(x.shape) for x in rest[:8])
    return *by_token, agents.new_empty(agents.shape), *parts


def _setup_context(ctx, inputs, output):
    *tensors, key_scale, query_scale, impl = inputs
    ctx.options = key_scale, query_scale, impl
    ctx.save_for_backward(*output[1:], *tensors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, *_):
    saved = ctx.saved_tensors
    if grad is None:
        return (None,) * (len(saved) - 3 + len(ctx.options))
    grads = _backward_operator(grad, *saved, *ctx.options)
    inputs = saved[3:]
    return *(None if x is None else g for g, x in zip(grads, inputs, strict=True)), *[None] * 3


_BIASES = ", ".join(
    f"Tensor? {side}_{part}"
    for side in ("key", "query")
    for part in ("rows", "columns", "block", "prefix")
)
_INPUTS = (
    f"Tensor q, Tensor k, Tensor v, Tensor agents, {_BIASES}, "
    "float key_scale, float query_scale, str impl"
)
_backward_operator = register_operator(
    "agent_attention_backward(Tensor grad, Tensor values, Tensor key_lse, Tensor query_lse, "
    f"{_INPUTS}) -> ({', '.join(['Tensor'] * 12)})",
    _backward,
    _fake_backward,
    direct=_backward_directly,
)
_operator = register_operator(
    f"agent_attention({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
