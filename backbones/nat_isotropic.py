"""Isotropic NAT and DiNAT, and ViT with relative position bias

Paper: `Dilated Neighborhood Attention Transformer`, section 4.4 - https://arxiv.org/abs/2209.15001
Original code: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer

Transformers of one resolution, without a class token: neighborhood attention in all blocks, dilated
in every other one (DiNAT), or full attention (ViT-rpb), all with relative position biases.

What this implementation does differently:
* any input size: borders that patches do not divide are zero-padded; the bias table of full
  attention is resized, bicubically, for maps of another size
* each block is a stage of its own, whose features can be taken
"""
# The original is released under the MIT License.

import re
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn

from ._builder import StateDict, build_model, unwrap
from ._pyramid import Pyramid, Stage
from ._registry import register_model
from .nat import NATBlock, NeighborhoodAttention, PatchStem, fit_table, resize_table
from .nat import _cfg as _nat_cfg

__all__ = ["BiasedAttention", "IsotropicTransformer"]


class BiasedAttention(nn.Module):
    """Full attention with relative position bias, counted from query to key as NAT counts.

    Takes and returns channels-last maps (B, H, W, C) of any size.

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``.
        map_size: Tokens a side that the bias table is for.
        proj_drop: Dropout after the projection.
    """

    def __init__(
        self, dim: int, num_heads: int, map_size: int = 14, proj_drop: float = 0.0, **dd: Any
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.map_size = map_size
        side = 2 * map_size - 1
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.rpb = nn.Parameter(torch.empty(num_heads, side, side, **dd))
        trunc_normal_(self.rpb, std=0.02)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def bias(self, height: int, width: int) -> torch.Tensor:
        """The bias (heads, H * W, H * W) of a map."""
        return expand_table(resize_table(self.rpb, (2 * height - 1, 2 * width - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, dim)
        bias = self.bias(height, width).to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = out.transpose(1, 2).reshape(batch, height, width, channels)
        return self.proj_drop(self.proj(out))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, map_size={self.map_size}"


def expand_table(table: torch.Tensor) -> torch.Tensor:
    """The bias (heads, H * W, H * W) of a map, from a table (heads, 2 * H - 1, 2 * W - 1)."""
    height, width = ((size + 1) // 2 for size in table.shape[1:])
    rows, columns = (
        torch.arange(size, device=table.device) - torch.arange(size, device=table.device)[:, None]
        for size in (height, width)
    )  # from query to key
    bias = table[:, rows + height - 1][..., columns + width - 1]  # (heads, H, H, W, W)
    return bias.permute(0, 1, 3, 2, 4).reshape(-1, height * width, height * width)


class IsotropicTransformer(Pyramid):
    """Patches, blocks of one width, a norm and a classifier of the mean (DiNAT, section 4.4).

    Args:
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier.
        patch_size: Pixels of a patch a side.
        depth: Blocks.
        embed_dim: Channels.
        head_dim: Width of a head.
        kernel_size: Tokens of a window a side; None for full attention.
        dilations: Dilations that blocks take in turn.
        map_size: Tokens a side that the bias tables of full attention are for.
        mlp_ratio: Hidden over input channels of the MLPs.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after projections.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 16,
        depth: int = 12,
        embed_dim: int = 384,
        head_dim: int = 32,
        kernel_size: int | None = 7,
        dilations: tuple[int, ...] = (1,),
        map_size: int = 14,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if embed_dim % head_dim:
            raise ValueError(f"embed_dim {embed_dim} must be divisible by head_dim {head_dim}")
        heads = embed_dim // head_dim
        shared = {"proj_drop": proj_drop_rate, **dd}

        def attention(i: int) -> nn.Module:
            if kernel_size is None:
                return BiasedAttention(embed_dim, heads, map_size, **shared)
            dilation = dilations[i % len(dilations)]
            return NeighborhoodAttention(embed_dim, heads, kernel_size, dilation, **shared)

        block = partial(NATBlock, embed_dim, mlp_ratio=mlp_ratio, **shared)
        drop_paths = calculate_drop_path_rates(drop_path_rate, depth)
        super().__init__(
            PatchStem(in_chans, embed_dim, patch_size, **dd),
            [
                Stage(nn.Identity(), [block(attention(i), drop_path=drop_paths[i])])
                for i in range(depth)
            ],
            nn.LayerNorm(embed_dim, **dd),
            [embed_dim] * depth,
            [patch_size] * depth,
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            channels_last=True,
            **dd,
        )


_URL = "https://shi-labs.com/projects/dinat/checkpoints/isotropic/"
_cfg = partial(_nat_cfg, first_conv="stem.conv", pool_size=(14, 14))

default_cfgs = generate_default_cfgs(
    {
        f"{name}.in1k": _cfg(f"{_URL}{name}_in1k_224.pth")
        for name in (
            "nat_isotropic_small",
            "nat_isotropic_base",
            "dinat_isotropic_small",
            "dinat_isotropic_base",
            "vitrpb_small",
            "vitrpb_base",
        )
    }
)

_RULES = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.norm\.", "stem.norm."),
    (r"^layers\.(\d+)\.", r"stages.\1.blocks.0."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official state dict to ours; keeps the names of ours.

    The table of indices that ViT-rpb's releases hold is made anew, and dropped.
    """
    own = dict(model.named_parameters())
    converted = {}
    for key, value in unwrap(state_dict).items():
        if key.endswith(".relative_position_index"):
            continue
        for pattern, replacement in _RULES:
            key = re.sub(pattern, replacement, key)
        converted[key] = fit_table(value, own.get(key))
    return converted


def _create_isotropic(
    variant: str, pretrained: bool = False, **kwargs: Any
) -> IsotropicTransformer:
    out_indices = kwargs.pop("out_indices", tuple(range(kwargs.get("depth", 12))))
    return build_model(
        IsotropicTransformer,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_SMALL = {"embed_dim": 384}
_BASE = {"embed_dim": 768}
_DILATED = {"dilations": (1, 2)}
_FULL = {"kernel_size": None}


@register_model
def nat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """Isotropic NAT-Small: 22.0 M parameters, 80.0 % ImageNet-1k top-1 in the paper."""
    model_args = _SMALL
    return _create_isotropic("nat_isotropic_small", pretrained, **dict(model_args, **kwargs))


@register_model
def nat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """Isotropic NAT-Base: 86.5 M parameters, 81.6 % ImageNet-1k top-1 in the paper."""
    model_args = _BASE
    return _create_isotropic("nat_isotropic_base", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """Isotropic DiNAT-Small: 22.0 M parameters, 80.8 % ImageNet-1k top-1."""
    model_args = {**_SMALL, **_DILATED}
    return _create_isotropic("dinat_isotropic_small", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """Isotropic DiNAT-Base: 86.5 M parameters, 82.1 % ImageNet-1k top-1."""
    model_args = {**_BASE, **_DILATED}
    return _create_isotropic("dinat_isotropic_base", pretrained, **dict(model_args, **kwargs))


@register_model
def vitrpb_small(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """ViT-rpb-Small: 22.1 M parameters, 81.2 % ImageNet-1k top-1 in the paper."""
    model_args = {**_SMALL, **_FULL}
    return _create_isotropic("vitrpb_small", pretrained, **dict(model_args, **kwargs))


@register_model
def vitrpb_base(pretrained: bool = False, **kwargs: Any) -> IsotropicTransformer:
    """ViT-rpb-Base: 86.6 M parameters, 82.5 % ImageNet-1k top-1 in the paper."""
    model_args = {**_BASE, **_FULL}
    return _create_isotropic("vitrpb_base", pretrained, **dict(model_args, **kwargs))
