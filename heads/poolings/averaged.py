"""Poolings whose query is the mean of the tokens: SimPool, its form without projections, CLIP."""

import torch
from timm.layers import to_2tuple, trunc_normal_
from torch import nn

from ...kernels import multi_query_pool
from .base import (
    QueryPooling,
    Scores,
    check_heads,
    fold_keys,
    project_values,
    standardize,
    unmoved_by,
)

__all__ = ["CLIPPooling", "SimPool", "SimPoolNoLinears"]


def _own_groups(pooled: torch.Tensor) -> torch.Tensor:
    """Of sums (B, H, C) by H heads the group of channels of each head, together (B, C)."""
    groups = pooled.unflatten(2, (pooled.shape[1], -1))  # (B, H, H, C / H)
    return groups.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(1)


class SimPool(QueryPooling):
    """SimPool: the mean of the tokens asks, normed tokens answer; no value projection, no gamma.

    Args:
        dim: Width of the tokens.
        num_heads: Heads.
        qkv_bias: Whether projections have a bias.
        qk_scale: Factor of the logits; that of a head's width by default.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.norm_patches = nn.LayerNorm(dim, eps=1e-6)
        self.wq = nn.Linear(dim, dim, bias=qkv_bias)
        self.wk = nn.Linear(dim, dim, bias=qkv_bias)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        query = self.wq(x.mean(1, keepdim=True) if cls is None else cls)
        norm = self.norm_patches
        queries = fold_keys(query, self.wk.weight, self.num_heads) * norm.weight
        queries = unmoved_by(queries, self.wk.bias)
        return Scores(standardize(x, norm), queries, self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Query (B, 1, dim) instead of the mean.
        """
        self.check(x)
        pooled = _own_groups(self.scores(x, cls).pool())
        return pooled * self.norm_patches.weight + self.norm_patches.bias


class SimPoolNoLinears(QueryPooling):
    """SimPool without projections: a norm is all it learns, and values are the tokens as they are.

    Args:
        dim: Width of the tokens.
        num_heads: Heads, each of a group of channels.
        qk_scale: Factor of the logits; that of a head's width by default.
    """

    def __init__(self, dim: int, num_heads: int = 12, qk_scale: float | None = None):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.norm_patches = nn.LayerNorm(dim, eps=1e-6)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        norm = self.norm_patches
        query = norm(x.mean(1, keepdim=True) if cls is None else cls) * norm.weight  # (B, 1, dim)
        groups = torch.eye(self.num_heads, dtype=x.dtype, device=x.device)
        queries = query * groups.repeat_interleave(self.dim // self.num_heads, 1)
        return Scores(standardize(x, norm), queries, self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Query (B, 1, dim) instead of the mean.
        """
        self.check(x)
        tokens, queries, scale = self.scores(x, cls)
        return _own_groups(multi_query_pool(tokens, queries, scale=scale, values=x))


class CLIPPooling(QueryPooling):
    """CLIP's attention pool: the mean of normed tokens, with learned positions, asks all of them.

    Args:
        dim: Width of the tokens.
        feat_size: Side of the grid of tokens, or height and width.
        num_heads: Heads.
        qkv_bias: Whether projections of queries, keys and values have a bias.
    """

    def __init__(
        self,
        dim: int,
        feat_size: int | tuple[int, int] = 14,
        num_heads: int = 4,
        qkv_bias: bool = True,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        height, width = to_2tuple(feat_size)
        self.num_tokens = height * width
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.pos_embed = nn.Parameter(torch.zeros(self.num_tokens + 1, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for parameter in (self.pos_embed, self.qkv.weight):
            trunc_normal_(parameter, std=dim**-0.5)
        if qkv_bias:
            nn.init.zeros_(self.qkv.bias)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        x = self.norm(x)
        first = x.mean(1, keepdim=True) if cls is None else cls
        x = torch.cat((first, x), 1) + self.pos_embed  # (B, 1 + N, dim)
        query, key, _ = self.qkv.weight.chunk(3)
        bias = None if self.qkv.bias is None else self.qkv.bias[: self.dim]
        query = nn.functional.linear(x[:, :1], query, bias)
        return Scores(x, fold_keys(query, key, self.num_heads), self.scale)

    def attention(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Weights (B, heads, N) of the tokens; what is missing to 1 is that of their mean."""
        return super().attention(x, cls)[..., 1:]

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: First token (B, 1, dim) instead of the mean.
        """
        self.check(x)
        value = self.qkv.weight[2 * self.dim :]
        bias = None if self.qkv.bias is None else self.qkv.bias[2 * self.dim :]
        pooled = project_values(self.scores(x, cls).pool(), value, bias, self.num_heads)
        return self.proj(pooled)[:, 0]
