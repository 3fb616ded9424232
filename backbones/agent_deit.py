"""Agent DeiT

Paper: `Agent Attention: On the Integration of Softmax and Linear Attention`
    - https://arxiv.org/abs/2312.08874 (ECCV 2024)
Original code: https://github.com/LeapLabTHU/Agent-Attention

DeiT, a Vision Transformer with a class token, whose blocks attend by way of agents: all blocks of
the tiny and small models, the first four of the base model. The class token is a query, a key and a
value like others, with biases of its own, but agents are not pooled from it, and the depthwise
convolution does not see it.

What this implementation does differently:
* any input size: borders that patches do not divide are zero-padded; biases and positions are
  resized for maps of another size
* each block is a stage of its own, whose features can be taken
* the names of parameters, and biases in the layout of the kernel

As those of timm's Vision Transformers, `forward_features` gives tokens (B, 1 + N, C), the class
token before those of the map. Intermediate features are NCHW.

Checkpoints: the authors' files load as released, by `checkpoint_path=FILE`.
"""
# The original states no licence; nothing of its code is in here.

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import (
    PatchEmbed,
    calculate_drop_path_rates,
    global_pool_nlc,
    to_2tuple,
    trunc_normal_,
)
from timm.models import generate_default_cfgs
from torch import nn

from ._agent import (
    AgentAttention,
    Size,
    SpatialReductionAttention,
    agent_cfg,
    convert_biases,
    fit_biases,
    fit_positions,
    resize_positions,
    set_map_size,
)
from ._builder import StateDict, build_model, rename, unwrap
from ._pyramid import Pyramid, Stage
from ._registry import register_model
from .nat import NATBlock

__all__ = ["AgentDeiT", "ClassTokenAgentAttention"]


class Tokens(NamedTuple):
    """A class token and those of a map.

    Attributes:
        tokens: (B, 1 + H * W, C), the class token first.
        size: H and W.
    """

    tokens: torch.Tensor
    size: Size

    @property
    def map(self) -> torch.Tensor:
        """The tokens of the map, (B, H, W, C)."""
        return self.tokens[:, 1:].unflatten(1, self.size)


class _OfTokens:
    """Attention modules of maps, for tokens (B, 1 + N, C) and the size of the map in them."""

    def project(self, x: torch.Tensor, size: Size) -> tuple[Any, ...]:
        q, k, v, *again = self._unpack(self.qkv(x), 3)
        return q, k, v, size, size, *again

    def forward(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        return self.proj_drop(self.proj(self.attend(*self.project(x, size))))


class ClassTokenAttention(_OfTokens, SpatialReductionAttention):
    """Full attention with a class token."""


class ClassTokenAgentAttention(_OfTokens, AgentAttention):
    """Agent attention with a class token.

    Takes tokens (B, 1 + H * W, C), the class token first, and H and W.
    """

    def __init__(self, dim: int, num_heads: int, map_size: int | Size, **kwargs: Any):
        super().__init__(dim, num_heads, map_size, prefix_tokens=1, **kwargs)


class TokenBlock(NATBlock):
    """Attention and MLP, each residual, of a class token and a map."""

    def forward(self, x: Tokens) -> Tokens:
        tokens, size = x
        tokens = tokens + self.drop_path1(self.ls1(self.attn(self.norm1(tokens), size)))
        return Tokens(tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens)))), size)


class TokenNorm(nn.LayerNorm):
    """Norm of a class token and a map."""

    def forward(self, x: Tokens) -> Tokens:
        return Tokens(super().forward(x.tokens), x.size)


class TokenStem(PatchEmbed):
    """Patches behind a class token, with learned positions; NCHW images to tokens."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int,
        map_size: Size,
        pos_drop: float = 0.0,
        **dd: Any,
    ):
        super().__init__(
            None,
            patch_size,
            in_chans,
            dim,
            flatten=False,
            output_fmt="NHWC",
            **dd,
        )

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(trunc_normal_(torch.empty(1, *shape, dim, **dd), std=0.02))

        self.cls_token = parameter(1)
        self.cls_pos_embed = parameter(1)
        self.pos_embed = parameter(*map_size)
        self.pos_drop = nn.Dropout(pos_drop)

    def forward(self, x: torch.Tensor) -> Tokens:
        beyond = self.patch_size[0] - 1
        x = super().forward(F.pad(x, (0, beyond, 0, beyond)))  # what is no whole patch is not read
        size = x.shape[1:3]
        x = x + resize_positions(self.pos_embed, size, "bicubic")
        token = (self.cls_token + self.cls_pos_embed).expand(x.shape[0], -1, -1)
        return Tokens(self.pos_drop(torch.cat([token.to(x.dtype), x.flatten(1, 2)], 1)), size)

    @torch.no_grad()
    def set_map_size(self, size: Size) -> None:
        """Makes the positions a parameter of another map size."""
        self.pos_embed = nn.Parameter(resize_positions(self.pos_embed, size, "bicubic").clone())


class TokenHead(nn.Module):
    """Classifier of a class token, or of other tokens pooled.

    Args:
        in_features: Channels.
        num_classes: Classes; 0 for no classifier.
        pool_type: ``"token"`` takes the class token; ``"avg"``, ``"max"`` and ``"avgmax"`` pool the
            others; ``""`` keeps all.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "token",
        drop_rate: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        self.num_features = in_features
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type, **dd)

    def reset(
        self,
        num_classes: int,
        pool_type: str | None = None,
        reset_other: bool = False,
        **dd: Any,
    ) -> None:
        """Replaces the classifier, and the pooling where ``pool_type`` is given."""
        if pool_type not in (None, "token", "avg", "max", "avgmax", ""):
            raise ValueError(
                f"global_pool must be 'token', 'avg', 'max', 'avgmax' or ''; got {pool_type!r}"
            )
        if pool_type is not None:
            self.pool_type = pool_type
        self.fc = nn.Linear(self.num_features, num_classes, **dd) if num_classes else nn.Identity()

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.drop(global_pool_nlc(x, self.pool_type, num_prefix_tokens=1))
        return x if pre_logits else self.fc(x)


class AgentDeiT(Pyramid):
    """Vision Transformer with agent attention and a class token (paper, section 4.3).

    Args:
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier; see ``TokenHead``.
        img_size: Pixels a side that biases and positions are for; any other size works, too.
        patch_size: Pixels of a patch a side.
        depth: Blocks.
        agent_depth: How many of them, the first, have agents; all by default. The others have full
            attention.
        embed_dim: Channels.
        head_dim: Width of a head.
        num_agents: Agents, a square number.
        agent_shape: Rows and columns of the agents that are pooled; the square of ``num_agents`` by
            default.
        mlp_ratio: Hidden over input channels of the MLPs.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after positions are added.
        proj_drop_rate: Dropout after projections.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        img_size: int | Size = 224,
        patch_size: int = 16,
        depth: int = 12,
        agent_depth: int | None = None,
        embed_dim: int = 192,
        head_dim: int = 64,
        num_agents: int = 49,
        agent_shape: int | Size | None = None,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if embed_dim % head_dim:
            raise ValueError(f"embed_dim {embed_dim} must be divisible by head_dim {head_dim}")
        self._patch_size = patch_size
        map_size = self._map_size(img_size)
        shared = {"proj_drop": proj_drop_rate, **dd}

        def attention(i: int) -> nn.Module:
            heads = embed_dim // head_dim
            if agent_depth is not None and i >= agent_depth:
                return ClassTokenAttention(embed_dim, heads, **shared)
            return ClassTokenAgentAttention(
                embed_dim,
                heads,
                map_size,
                num_agents=num_agents,
                agent_shape=agent_shape,
                **shared,
            )

        block = partial(TokenBlock, embed_dim, mlp_ratio=mlp_ratio, norm_eps=1e-6, **shared)
        drop_paths = calculate_drop_path_rates(drop_path_rate, depth)
        super().__init__(
            TokenStem(in_chans, embed_dim, patch_size, map_size, pos_drop_rate, **dd),
            [
                Stage(nn.Identity(), [block(attention(i), drop_path=drop_paths[i])])
                for i in range(depth)
            ],
            TokenNorm(embed_dim, eps=1e-6, **dd),
            [embed_dim] * depth,
            [patch_size] * depth,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            channels_last=True,
            head_layer=TokenHead,
            **dd,
        )

    def _map_size(self, img_size: int | Size) -> Size:
        return tuple(-(-side // self._patch_size) for side in to_2tuple(img_size))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, beyond biases and norms."""
        return {"stem.cls_token", "stem.cls_pos_embed", "stem.pos_embed"}

    def set_input_size(self, img_size: int | Size) -> None:
        """Resizes biases and positions for images of another size, as for fine-tuning to it.

        Args:
            img_size: Pixels a side.
        """
        size = self._map_size(img_size)
        self.stem.set_map_size(size)
        set_map_size(self.stages, size)

    def _to_nchw(self, x: Tokens) -> torch.Tensor:
        return x.map.permute(0, 3, 1, 2)

    def _to_output(self, x: Tokens) -> torch.Tensor:
        return x.tokens

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to tokens (B, 1 + N, C), the class token first."""
        return super().forward_features(x)


_cfg = partial(agent_cfg, first_conv="stem.proj", pool_size=(14, 14))

default_cfgs = generate_default_cfgs(
    {
        "agent_deit_tiny.in1k": _cfg("57e0904221824ee7b7af"),
        "agent_deit_small.in1k": _cfg("fdd43304372541db8ea7"),
        "agent_deit_small_448.in1k": _cfg(
            "a228f86241c445f1969b", input_size=(3, 448, 448), pool_size=(28, 28)
        ),
        "agent_deit_base.in1k": _cfg("5115f15fdd7e4ab58fbc"),
    }
)

_OFFICIAL = (
    (r"^(cls_token|pos_embed)$", r"stem.\1"),
    (r"^patch_embed\.", "stem."),
    (r"^blocks\.(\d+)\.", r"stages.\1.blocks.0."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official state dict to ours; keeps the names of ours.

    The first of the official positions is that of the class token. Biases, positions and patches of
    another size are resized: linearly and, the last two, bicubically.
    """
    converted = convert_biases(rename(unwrap(state_dict), _OFFICIAL))
    positions = converted.get("stem.pos_embed")
    if positions is not None and positions.ndim == 3:
        converted["stem.cls_pos_embed"] = positions[:, :1]
        converted["stem.pos_embed"] = positions[:, 1:]
    patches, own = converted.get("stem.proj.weight"), model.stem.proj.weight
    if patches is not None and patches.shape[2:] != own.shape[2:]:
        converted["stem.proj.weight"] = F.interpolate(
            patches, own.shape[2:], mode="bicubic", align_corners=False
        )
    return fit_positions(fit_biases(converted, model), model)


def _create_agent_deit(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    out_indices = kwargs.pop("out_indices", tuple(range(kwargs.get("depth", 12))))
    return build_model(
        AgentDeiT,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_SMALL = {"embed_dim": 384}


@register_model
def agent_deit_tiny(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-T: 6.0 M parameters, 74.9 % ImageNet-1k top-1 in the paper."""
    model_args = {"embed_dim": 192}
    return _create_agent_deit("agent_deit_tiny", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_deit_small(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-S: 22.6 M parameters, 80.5 % ImageNet-1k top-1 in the paper."""
    return _create_agent_deit("agent_deit_small", pretrained, **dict(_SMALL, **kwargs))


@register_model
def agent_deit_small_448(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-S at 448 pixels: 83.1 % ImageNet-1k top-1 in the paper."""
    model_args = {**_SMALL, "img_size": 448}
    return _create_agent_deit("agent_deit_small_448", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_deit_base(pretrained: bool = False, **kwargs: Any) -> AgentDeiT:
    """Agent-DeiT-B, four blocks with agents: 87.2 M parameters, 82.0 % ImageNet-1k top-1."""
    model_args = {"embed_dim": 768, "agent_depth": 4, "num_agents": 81}
    return _create_agent_deit("agent_deit_base", pretrained, **dict(model_args, **kwargs))
