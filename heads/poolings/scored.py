"""Poolings by scores of single tokens, after they have mixed or not: AbMILP, DELF's, CBAM, DINO."""

import math

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.layers.cbam import CbamModule
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import nn

from ...kernels import multi_query_pool
from .base import Pooling, QueryPooling, Scores, check_heads, unmoved_by

__all__ = ["AbMILPPooling", "CBAMPooling", "DOLGPooling", "DinoViTPooling"]

_ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class AbMILPPooling(QueryPooling):
    """Attention-based multiple-instance pooling: an MLP scores tokens, after self-attention or not.

    The projections of the self-attention, of one head, are folded into one matrix for the logits
    and one before the MLP, and its values are projected after the weighted sum.

    Args:
        dim: Width of the tokens.
        sa: What the self-attention is for: ``"both"`` scores and values, the scores alone
            (``"map"``), or ``"none"``, without one.
        activation: Of the MLP: ``"tanh"`` or ``"relu"``.
        depth: Linear layers of the MLP.
        cond: ``"pe"`` adds fixed positions to what is scored.
        content: ``"patch"`` leaves out the first token, which is the class token then.
        num_patches: Number of patches, a square, for ``cond="pe"``.
    """

    def __init__(
        self,
        dim: int,
        sa: str = "both",
        activation: str = "tanh",
        depth: int = 2,
        cond: str = "none",
        content: str = "all",
        num_patches: int | None = None,
    ):
        super().__init__()
        for name, value, known in (
            ("sa", sa, ("none", "map", "both")),
            ("activation", activation, tuple(_ACTIVATIONS)),
            ("cond", cond, ("none", "pe")),
            ("content", content, ("all", "patch")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}; got {value!r}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1; got {depth}")
        self.dim = self.out_features = dim
        self.sa, self.content = sa, content
        self.pos_embed = None
        if cond == "pe":
            self.pos_embed = nn.Parameter(
                _positions(dim, num_patches, with_class=content == "all"), requires_grad=False
            )
        self.self_attn = nn.Identity() if sa == "none" else Attention(dim, num_heads=1)
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [nn.Linear(dim, dim), _ACTIVATIONS[activation]()]
        self.attention_predictor = nn.Sequential(*layers, nn.Linear(dim, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim)."""
        self.check(x)
        mixed, (tokens, query, scale) = self._score(x)
        values = mixed if self.sa == "both" else self._content(x)
        pooled = multi_query_pool(tokens, query, scale=scale, values=values)[:, 0]
        if self.sa != "both":
            return pooled
        return self.self_attn.proj(F.linear(pooled, self.self_attn.qkv.weight[2 * self.dim :]))

    def scores(self, x: torch.Tensor, cls: torch.Tensor | None = None) -> Scores:
        return self._score(x)[1]

    def _content(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 1:] if self.content == "patch" else x

    def _score(self, x: torch.Tensor) -> tuple[torch.Tensor, Scores]:
        """Tokens mixed by the self-attention's weights alone, and what their scores are of."""
        x = self._content(x)
        if self.pos_embed is not None and x.shape[1] != self.pos_embed.shape[1]:
            raise ValueError(
                f"AbMILPPooling has positions for {self.pos_embed.shape[1]} tokens; got "
                f"{x.shape[1]}: set num_patches and content"
            )
        first, *rest = self.attention_predictor
        weight, bias, mixed = first.weight, first.bias, x
        value = None
        if self.sa != "none":
            query, key, value = self.self_attn.qkv.weight.chunk(3)
            mixed = F.scaled_dot_product_attention(
                (x @ (query.T @ key))[:, None], x[:, None], x[:, None]
            )[:, 0]
            value = self.self_attn.proj.weight @ value
        if not rest and self.pos_embed is not None:
            seen = mixed if value is None else F.linear(mixed, value, self.self_attn.proj.bias)
            return mixed, Scores(seen + self.pos_embed, unmoved_by(weight, bias), 1.0)
        if value is not None:
            bias = bias + weight @ self.self_attn.proj.bias
            weight = weight @ value
        if not rest:
            return mixed, Scores(mixed, unmoved_by(weight, bias), 1.0)
        hidden = F.linear(mixed, weight, bias)
        if self.pos_embed is not None:
            hidden = hidden + F.linear(self.pos_embed, first.weight)
        *rest, last = rest
        for layer in rest:
            hidden = layer(hidden)
        return mixed, Scores(hidden, unmoved_by(last.weight, last.bias), 1.0)


def _positions(dim: int, num_patches: int | None, with_class: bool) -> torch.Tensor:
    """Fixed positions (1, N, dim) of a square of patches, after zeros for the class token."""
    side = math.isqrt(num_patches or 0)
    if not side or side * side != num_patches:
        raise ValueError(f"cond='pe' needs num_patches, a square number; got {num_patches}")
    if dim % 4:
        raise ValueError(f"cond='pe' needs a width that 4 divides; got {dim}")
    table = build_sincos2d_pos_embed([side, side], dim, reverse_coord=True, interleave_sin_cos=True)
    table = table.unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1)
    return F.pad(table, (0, 0, 1, 0) if with_class else (0, 0, 0, 0))[None]


class DOLGPooling(Pooling):
    """DELF's pooling as in DOLG: the mean of normalised local features times their weights.

    Local features are a linear layer and a batch norm of the tokens; a weight is the softplus of a
    linear layer of what of them is positive.

    Args:
        dim: Width of the tokens.
        bn_eps: Of the batch norm.
        bn_momentum: Of the batch norm.
    """

    def __init__(self, dim: int, bn_eps: float = 1e-5, bn_momentum: float = 0.1):
        super().__init__()
        self.dim = self.out_features = dim
        self.conv1 = nn.Conv2d(dim, dim, 1)
        self.bn = nn.BatchNorm2d(dim, eps=bn_eps, momentum=bn_momentum)
        self.conv2 = nn.Conv2d(dim, 1, 1)
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=math.sqrt(2 / conv.out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim)."""
        weights, features = self._local(x)
        return (weights @ features)[:, 0] / x.shape[1]

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """Weights (B, 1, N) of the tokens as parts of their sum."""
        weights, _ = self._local(x)
        return weights / weights.sum(-1, keepdim=True)

    def _local(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (B, 1, N), of length 1 taken out of the features (B, N, dim) that follow."""
        self.check(x)
        rows = F.linear(x.flatten(0, 1), self.conv1.weight.flatten(1), self.conv1.bias)
        features = self.bn(rows[..., None, None]).view_as(x)
        scores = F.linear(features.relu(), self.conv2.weight.flatten(1), self.conv2.bias)
        return F.softplus(scores).mT, F.normalize(features, dim=-1)


class CBAMPooling(Pooling, CbamModule):
    """CBAM's channel and spatial gates, of timm, around a residual; then ReLU and the mean.

    Args:
        dim: Width of the tokens.
        rd_ratio: Width of the channel gate's hidden layer over that of the tokens.
        spatial_kernel_size: Kernel of the spatial gate.
        mlp_bias: Whether the channel gate has biases.
    """

    def __init__(
        self,
        dim: int,
        rd_ratio: float = 1 / 16,
        spatial_kernel_size: int = 7,
        mlp_bias: bool = False,
    ):
        super().__init__(
            dim, rd_ratio=rd_ratio, spatial_kernel_size=spatial_kernel_size, mlp_bias=mlp_bias
        )
        self.dim = self.out_features = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) of a square grid, row by row, to (B, dim).

        Raises:
            ValueError: If they are not as many as a square grid has.
        """
        self.check(x)
        side = math.isqrt(x.shape[1])
        if side * side != x.shape[1]:
            raise ValueError(
                f"CBAMPooling needs the tokens of a square grid; got {x.shape[1]}: leave out the "
                "class token, or crop images square"
            )
        x = x.mT.unflatten(2, (side, side))  # (B, dim, side, side)
        return (self.spatial(self.channel(x)) + x).relu().mean((2, 3))


class DinoViTPooling(Pooling):
    """A pre-norm transformer block over all tokens, then their mean.

    The last layer of the MLP follows the mean, as it may.

    Args:
        dim: Width of the tokens.
        num_heads: Heads.
        mlp_ratio: Width of the MLP over that of the tokens.
        qkv_bias: Whether projections of queries, keys and values have a bias.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, mlp_ratio: float = 4.0, qkv_bias: bool = False
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.dim = self.out_features = dim
        self.dino_block = Block(
            dim, num_heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, norm_layer=nn.LayerNorm
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim)."""
        self.check(x)
        block = self.dino_block
        x = x + block.attn(block.norm1(x))
        hidden = block.mlp.act(block.mlp.fc1(block.norm2(x)))
        return x.mean(1) + block.mlp.fc2(hidden.mean(1))
