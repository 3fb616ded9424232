"""The definition of agent attention in plain torch."""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class AgentBias(NamedTuple):
    """Logit bias between agents and the tokens of a map, in parts that are small.

    Agent ``a`` and the token in row ``y`` and column ``x`` get, in each head,
    ``rows[a, y] + columns[a, x] + resized[a, y, x]``, where ``resized`` is ``block`` brought to the
    size of the map by bilinear interpolation (``align_corners=False``). Tokens are row-major. All
    parts lead with heads and agents, whichever of agents and tokens ask: the authors'
    ``(1, heads, H, 1, agents)`` is ``rows[0, :, :, 0].transpose(1, 2)``.

    Attributes:
        rows: (heads, agents, H).
        columns: (heads, agents, W).
        block: (heads, agents, h, w) of any size.
        prefix: (heads, agents, P), for P tokens before those of the map, such as a class token.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    block: torch.Tensor | None = None
    prefix: torch.Tensor | None = None


def dense_bias(bias: AgentBias) -> torch.Tensor:
    """The bias with its parts put together, (heads, agents, P + H * W)."""
    rows, columns, block, prefix = bias
    dense = rows[..., None] + columns[..., None, :]
    if block is not None:
        dense = dense + F.interpolate(block, dense.shape[2:], mode="bilinear", align_corners=False)
    dense = dense.flatten(2)
    return dense if prefix is None else torch.cat([prefix.to(dense.dtype), dense], -1)


def interpolation_weights(before: int, after: int, device: torch.device | str) -> torch.Tensor:
    """Weights (before, after) by which linear interpolation resizes a side."""
    lines = torch.eye(before, dtype=torch.float32, device=device)[None]
    return F.interpolate(lines, size=after, mode="linear", align_corners=False)[0]


def agent_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    agents: torch.Tensor,
    key_bias: torch.Tensor | AgentBias | None,
    query_bias: torch.Tensor | AgentBias | None,
    scales: tuple[float, float],
) -> torch.Tensor:
    """See ``visattn.kernels.agent_attention``."""
    if isinstance(key_bias, AgentBias):
        key_bias = dense_bias(key_bias)
    if isinstance(query_bias, AgentBias):
        query_bias = dense_bias(query_bias).transpose(1, 2)
    values = _weighted(agents * scales[0] @ k.transpose(-2, -1), key_bias, v)  # (B, heads, n, dim)
    return _weighted(q @ (agents * scales[1]).transpose(-2, -1), query_bias, values)


def _weighted(
    logits: torch.Tensor, bias: torch.Tensor | None, values: torch.Tensor
) -> torch.Tensor:
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return weights.to(values.dtype) @ values
