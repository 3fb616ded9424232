"""Efficient Probing (EP, arXiv 2506.10178): queries on plain tokens, one a group of channels."""

import torch
from torch import nn

from ...kernels import multi_query_pool
from .base import QueryPooling, Scores

__all__ = ["EfficientProbing"]


class EfficientProbing(QueryPooling):
    """Query j of M weights the tokens' j-th group of projected channels; groups are concatenated.

    There is no key projection, no norm and no output projection. In the paper the softmax has no
    scale; in the released code, as here, it has ``dim ** -0.5``.

    Args:
        dim: Width of the tokens.
        num_queries: M; it divides ``dim / d_out``.
        d_out: By how much values are narrower than tokens.
        qkv_bias: Whether the value projection has a bias.
        qk_scale: Factor of the logits; ``dim ** -0.5`` by default.

    Raises:
        ValueError: If the channels cannot be shared out so.
    """

    def __init__(
        self,
        dim: int,
        num_queries: int = 32,
        d_out: int = 1,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
    ):
        super().__init__()
        if num_queries < 1 or d_out < 1 or dim % (d_out * num_queries):
            raise ValueError(
                f"num_queries x d_out must divide the {dim} dimensions of tokens; got "
                f"{num_queries} x {d_out}"
            )
        self.dim, self.out_features = dim, dim // d_out
        self.num_queries, self.d_out = num_queries, d_out
        self.scale = qk_scale or dim**-0.5
        self.v = nn.Linear(dim, self.out_features, bias=qkv_bias)
        self.cls_token = nn.Parameter(torch.randn(1, num_queries, dim) * 0.02)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        return Scores(x, self.cls_token[0] if cls is None else cls, self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim / d_out).

        Args:
            x: Tokens.
            cls: Queries (B, M, dim) instead of the learned ones.
        """
        self.check(x)
        tokens, queries, scale = self.scores(x, cls)
        return multi_query_pool(tokens, queries, self.v.weight, self.v.bias, scale)
