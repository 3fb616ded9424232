"""Poolings by the cross-attention of learned queries: SigLIP, AIM, CoCa, CaiT, JEPA, CAE."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent, Mlp, trunc_normal_
from timm.models.cait import LayerScaleBlockClassAttn
from torch import nn

from .base import (
    Pooling,
    QueryPooling,
    Scores,
    check_heads,
    fold_keys,
    project_values,
    standardize,
    unmoved_by,
)

__all__ = [
    "AIMPooling",
    "CAEPooling",
    "CaiTPooling",
    "CoCaPooling",
    "JEPAPooling",
    "SigLIPPooling",
]


class SigLIPPooling(QueryPooling, AttentionPoolLatent):
    """timm's ``AttentionPoolLatent``, of SigLIP's MAP head: attention of a latent, then an MLP.

    Args:
        dim: Width of the tokens.
        num_heads: Heads.
        mlp_ratio: Width of the MLP over that of the tokens.
        qkv_bias: Whether projections of queries, keys and values have a bias.
        latent_len: Latents.
        pool_type: What is taken of several: ``"token"``, the first, or ``"avg"``.
        norm_layer: Norm before the MLP; none by default.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        latent_len: int = 1,
        pool_type: str = "token",
        norm_layer: type[nn.Module] | None = None,
    ):
        check_heads(dim, num_heads)
        if pool_type not in ("token", "avg"):
            raise ValueError(f"pool_type must be 'token' or 'avg'; got {pool_type!r}")
        super().__init__(
            dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            latent_len=latent_len,
            pool_type=pool_type,
            norm_layer=norm_layer,
        )
        self.dim = dim

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        latent = self.latent if cls is None else cls
        latent = latent[:, :1] if self.pool == "token" else latent
        query = self.q(latent[0] if cls is None else latent)
        key, _ = self.kv.weight.chunk(2)
        return Scores(x, fold_keys(query, key, self.num_heads), self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Latents (B, L, dim) instead of the learned ones.
        """
        self.check(x)
        _, value = self.kv.weight.chunk(2)
        bias = None if self.kv.bias is None else self.kv.bias.chunk(2)[1]
        x = project_values(self.scores(x, cls).pool(), value, bias, self.num_heads)
        x = self.proj_drop(self.proj(x))  # (B, L, dim)
        return (x + self.mlp(self.norm(x))).mean(1)


class AIMPooling(QueryPooling):
    """AIM's attentive probe: attention of a query to batch-normed tokens, no output projection.

    Args:
        dim: Width of the tokens.
        num_heads: Heads; the paper of EP reports 12.
        qkv_bias: Whether projections have a bias.
        num_queries: Queries, whose results are averaged.
        qk_scale: Factor of the logits; that of a head's width by default.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 16,
        qkv_bias: bool = False,
        num_queries: int = 1,
        qk_scale: float | None = None,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        self.num_heads, self.num_queries = num_heads, num_queries
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.cls_token = nn.Parameter(torch.randn(1, num_queries, dim) * 0.02)
        self.bn = nn.BatchNorm1d(dim, affine=False, eps=1e-6)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        tokens = self.bn(x.flatten(0, 1)).view_as(x)
        query = self.cls_token[0] if cls is None else cls
        queries = fold_keys(query, self.k.weight, self.num_heads)
        return Scores(tokens, unmoved_by(queries, self.k.bias), self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Queries (B, L, dim) instead of the learned ones.
        """
        self.check(x)
        pooled = self.scores(x, cls).pool().unflatten(1, (-1, self.num_heads)).mean(1)
        return project_values(pooled, self.v.weight, self.v.bias, self.num_heads)[:, 0]


class _GainNorm(nn.Module):
    """Layer norm whose shift is a buffer of zeros."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class CoCaPooling(QueryPooling):
    """CoCa's pooler: attention of a query by heads that share keys and values.

    Only the first of the queries is ever asked; the others are there, and in the number of
    parameters, as in the released code.

    Args:
        dim: Width of the tokens.
        heads: Heads.
        dim_head: Width of a head.
        num_img_queries: Queries that are kept.
        norm_context: Whether tokens are normed.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        dim_head: int = 64,
        num_img_queries: int = 196,
        norm_context: bool = False,
    ):
        super().__init__()
        self.dim = self.out_features = dim
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = _GainNorm(dim)
        self.context_norm = _GainNorm(dim) if norm_context else nn.Identity()
        self.img_queries = nn.Parameter(torch.randn(num_img_queries, dim))
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        query = self.img_queries[:1] if cls is None else cls[:, :1]
        key, _ = self.to_kv.weight.chunk(2)
        queries = fold_keys(self.to_q(self.norm(query)), key, self.heads)
        return Scores(self.context_norm(x), queries, self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Queries (B, L, dim) instead of the learned ones; the first is asked.
        """
        self.check(x)
        _, value = self.to_kv.weight.chunk(2)
        return self.to_out(project_values(self.scores(x, cls).pool(), value).flatten(1))


class CaiTPooling(Pooling):
    """Class-attention blocks of CaiT on a class token of its own, then a norm.

    The class token is among its keys.

    Args:
        dim: Width of the tokens.
        num_heads: Heads.
        iterations: Blocks.
        qkv_bias: Whether projections of queries, keys and values have a bias.
        init_scale: LayerScale at first.
        mlp_ratio_clstk: Width of the MLP over that of the tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        iterations: int = 1,
        qkv_bias: bool = True,
        init_scale: float = 1e-5,
        mlp_ratio_clstk: float = 4.0,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        self.blocks_token_only = nn.ModuleList(
            LayerScaleBlockClassAttn(
                dim,
                num_heads,
                mlp_ratio=mlp_ratio_clstk,
                qkv_bias=qkv_bias,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                init_values=init_scale,
            )
            for _ in range(iterations)
        )
        self.norm = nn.LayerNorm(dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        trunc_normal_(self.cls_token, std=0.02)

    def attention(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Weights (B, heads, N) of the last block; what is missing to 1 is the class token's."""
        self.check(x)
        token = self._start(x, cls)
        for block in self.blocks_token_only[:-1]:
            token = self._block(block, x, token)[0]
        return self._block(self.blocks_token_only[-1], x, token)[1]

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Class token (B, 1, dim) instead of the learned one.
        """
        self.check(x)
        token = self._start(x, cls)
        for block in self.blocks_token_only:
            token = self._block(block, x, token)[0]
        return self.norm(token)[:, 0]

    def _start(self, x: torch.Tensor, cls: torch.Tensor | None) -> torch.Tensor:
        return self.cls_token.expand(len(x), -1, -1) if cls is None else cls

    @staticmethod
    def _block(
        block: nn.Module, x: torch.Tensor, token: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The class token (B, 1, dim) after a block, and its weights (B, heads, N) of the others.

        The class token's own key and value have gradients and the others' have none, where they
        are frozen; so they are kept apart.
        """
        attn, norm = block.attn, block.norm1
        own, others = standardize(token, norm), standardize(x, norm)
        query = attn.q(own * norm.weight + norm.bias)
        queries = fold_keys(query, attn.k.weight, attn.num_heads) * norm.weight * attn.scale
        queries = unmoved_by(queries, attn.k.bias)
        logits = torch.cat((queries @ own.mT, queries @ others.mT), -1)  # (B, heads, 1 + N)
        weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        first, rest = weights.to(others.dtype).split((1, x.shape[1]), -1)
        pooled = (first * own + rest @ others) * norm.weight + norm.bias  # (B, heads, dim)
        out = attn.proj(project_values(pooled, attn.v.weight, attn.v.bias, attn.num_heads))
        token = token + block.gamma_1 * out
        return token + block.gamma_2 * block.mlp(block.norm2(token)), rest


class _CrossAttention(nn.Module):
    """Parameters of JEPA's cross-attention, under its names."""

    def __init__(self, dim: int, qkv_bias: bool):
        super().__init__()
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)


class JEPAPooling(QueryPooling):
    """The attentive pooler of I-JEPA and V-JEPA: a pre-norm block of cross-attention and MLP.

    Args:
        dim: Width of the tokens.
        num_heads: Heads.
        mlp_ratio: Width of the MLP over that of the tokens.
        qkv_bias: Whether projections of queries, keys and values have a bias.
        init_std: Standard deviation of all weights and the query at first.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_std: float = 0.02,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, dim))
        self.cross_attention_block = nn.ModuleDict(
            {
                "norm1": nn.LayerNorm(dim),
                "xattn": _CrossAttention(dim, qkv_bias),
                "norm2": nn.LayerNorm(dim),
                "mlp": Mlp(dim, int(dim * mlp_ratio)),
            }
        )
        trunc_normal_(self.query_tokens, std=init_std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        block = self.cross_attention_block
        for layer in (block["xattn"].proj, block["mlp"].fc2):
            layer.weight.data /= math.sqrt(2)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        attn, norm = (self.cross_attention_block[name] for name in ("xattn", "norm1"))
        query = attn.q(self.query_tokens[0] if cls is None else cls)
        key, _ = attn.kv.weight.chunk(2)
        queries = fold_keys(query, key, self.num_heads) * norm.weight
        return Scores(standardize(x, norm), queries, self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Query (B, 1, dim) instead of the learned one.
        """
        self.check(x)
        block = self.cross_attention_block
        attn, norm = block["xattn"], block["norm1"]
        _, value = attn.kv.weight.chunk(2)
        bias = None if attn.kv.bias is None else attn.kv.bias.chunk(2)[1]
        pooled = self.scores(x, cls).pool() * norm.weight + norm.bias
        out = attn.proj(project_values(pooled, value, bias, self.num_heads))
        query = (self.query_tokens if cls is None else cls) + out
        return (query + block["mlp"](block["norm2"](query)))[:, 0]


class _SplitCrossAttention(nn.Module):
    """Parameters of CAE's cross-attention, under its names."""

    def __init__(self, dim: int, qkv_bias: bool):
        super().__init__()
        for name in "qkv":
            setattr(self, name, nn.Linear(dim, dim, bias=False))
        for name in ("q_bias", "v_bias"):
            setattr(self, name, nn.Parameter(torch.zeros(dim)) if qkv_bias else None)
        self.proj = nn.Linear(dim, dim)


class CAEPooling(QueryPooling):
    """CAE's attentive probe: normed query, keys and values, no residual and no MLP.

    The query is zero at first, so that attention is uniform. ``norm2_cross`` has no effect; it is
    there to load the authors' files.

    Args:
        dim: Width of the tokens.
        num_heads: Heads.
        qkv_bias: Whether queries and values have a bias.
    """

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.query_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm1_q = nn.LayerNorm(dim)
        self.norm1_k = nn.LayerNorm(dim)
        self.norm1_v = nn.LayerNorm(dim)
        self.norm2_cross = nn.LayerNorm(dim)
        self.cross_attn = _SplitCrossAttention(dim, qkv_bias)

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        attn, norm = self.cross_attn, self.norm1_k
        query = self.norm1_q(self.query_token[0] if cls is None else cls)
        query = F.linear(query, attn.q.weight, attn.q_bias)
        queries = fold_keys(query, attn.k.weight, self.num_heads) * norm.weight
        queries = unmoved_by(queries, norm.bias, *self.norm2_cross.parameters())
        return Scores(standardize(x, norm), queries, self.scale)

    def forward(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim).

        Args:
            x: Tokens.
            cls: Query (B, 1, dim) instead of the learned one.
        """
        self.check(x)
        attn, norm = self.cross_attn, self.norm1_v
        # Keys and values are the same tokens but for gain and shift.
        pooled = self.scores(x, cls).pool() * norm.weight + norm.bias
        return attn.proj(project_values(pooled, attn.v.weight, attn.v_bias, self.num_heads))[:, 0]
