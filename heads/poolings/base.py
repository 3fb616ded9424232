"""What poolings share: checks, and attention of queries with projections folded around it.

The attention of a query by heads is, for head h with key projection ``W_h`` and query ``q_h``, that
of the query ``W_h^T q_h`` on the tokens themselves; a key bias adds the same to all logits, and so
nothing. A value projection follows the weighted sum as well as it precedes it, for it is linear and
weights sum to one. So do the gain and shift of a norm; what remains of the norm has no parameters,
and no gradient where tokens are frozen. What is computed is the same, at a few products a token and
query instead of one or two products with (D, D) matrices a token.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ...kernels import multi_query_pool, query_attention

__all__ = [
    "Pooling",
    "QueryPooling",
    "Scores",
    "check_heads",
    "fold_keys",
    "project_values",
    "standardize",
    "unmoved_by",
]


class Pooling(nn.Module):
    """Tokens (B, N, dim) to one vector (B, out_features).

    Attributes:
        dim: Width of the tokens.
        out_features: Width of what comes out.
        num_tokens: Number of tokens it is for; None for any.
    """

    dim: int
    out_features: int
    num_tokens: int | None = None

    def check(self, x: torch.Tensor) -> None:
        """Raises a ``ValueError`` unless these are tokens that it can pool."""
        if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != self.dim:
            raise ValueError(
                f"{type(self).__name__} pools tokens (B, N, {self.dim}), at least one; got "
                f"{tuple(x.shape)}"
            )
        if self.num_tokens is not None and x.shape[1] != self.num_tokens:
            raise ValueError(
                f"{type(self).__name__} has learned positions for {self.num_tokens} tokens; got "
                f"{x.shape[1]}: build it for the grid of these, without the class token"
            )


class Scores(NamedTuple):
    """What a softmax over tokens is of: ``scale * queries @ tokens^T``.

    Attributes:
        tokens: (B, N, C).
        queries: (M, C), or (B, M, C), different ones for each item.
        scale: Factor of the logits.
    """

    tokens: torch.Tensor
    queries: torch.Tensor
    scale: float

    def pool(self) -> torch.Tensor:
        """Weighted sums (B, M, C) of the tokens."""
        return multi_query_pool(self.tokens, self.queries, scale=self.scale)


class QueryPooling(Pooling):
    """A pooling by the attention of queries to tokens."""

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        """What its attention to tokens (B, N, dim) is made of; ``cls`` as in ``forward``."""
        raise NotImplementedError

    def attention(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Weights (B, M, N) that its M queries, or heads of queries, give to the tokens."""
        self.check(x)
        return query_attention(*self.scores(x, cls))


def fold_keys(query: torch.Tensor, weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Queries on tokens, of queries on projected tokens.

    Args:
        query: (..., L, heads * d).
        weight: Key projection, (heads * d, C), or (d, C) where heads share it.
        num_heads: Heads.

    Returns:
        (..., L * heads, C).
    """
    query = query.unflatten(-1, (num_heads, -1))  # (..., L, heads, d)
    if weight.shape[0] == query.shape[-1]:
        folded = query @ weight
    else:
        folded = torch.einsum("...hd,hdc->...hc", query, weight.unflatten(0, (num_heads, -1)))
    return folded.flatten(-3, -2)


def project_values(
    pooled: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    num_heads: int = 1,
) -> torch.Tensor:
    """Pooled projected tokens, of pooled tokens.

    Args:
        pooled: (B, L * heads, C).
        weight: Value projection, (heads * d, C); with ``num_heads=1`` one for whatever is pooled.
        bias: Its bias, (heads * d,).
        num_heads: Heads.

    Returns:
        (B, L, heads * d).
    """
    pooled = pooled.unflatten(1, (-1, num_heads))  # (B, L, heads, C)
    projected = torch.einsum("blhc,hdc->blhd", pooled, weight.unflatten(0, (num_heads, -1)))
    projected = projected.flatten(2)
    return projected if bias is None else projected + bias


def standardize(x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """What a layer norm makes of tokens before its gain and shift."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def unmoved_by(x: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
    """A tensor on which parameters have no effect; they get gradients of zero, which theirs are.

    What shifts all logits of a query alike is folded into nothing. Without a gradient, distributed
    training would wait for one.
    """
    for parameter in parameters:
        if parameter is not None:
            x = x + 0 * parameter.sum()
    return x


def check_heads(dim: int, num_heads: int) -> None:
    """Raises a ``ValueError`` unless heads divide a width."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide the {dim} dimensions of tokens; got {num_heads}")
