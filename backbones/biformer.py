"""BiFormer

Paper: `BiFormer: Vision Transformer with Bi-Level Routing Attention`
    - https://arxiv.org/abs/2303.08810 (CVPR 2023)
Original code: https://github.com/rayleizhu/BiFormer

The functions are those of the released models. Where the paper's text and the released code
differ, the code holds: logits are scaled by the full width, ``dim ** -0.5``, not by that of a head;
the last stage adds the local enhancement of its *input*, not of its values (``lepe_on="x"``).

What this implementation does differently:
* one model for all released layouts: BiFormer, its Swin-Tiny layout (STL), channels-first STL
* any input size: `pad_mode` says how a map that the regions do not divide is padded
* routing in fp32 at least, also under autocast
* preprocessing is that of the released training (ImageNet mean and std, bicubic, crop 0.875)

Checkpoints: the authors' links are dead; any copy of their files loads, by `checkpoint_path=FILE`.
Their figures are of the weights under `model`; training checkpoints also hold `model_ema`, which
timm's loader prefers and `visattn.zoo.checkpoint.load_checkpoint` does not.
"""
# The original is released under the MIT License.

import re
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerScale, calculate_drop_path_rates
from timm.models import generate_default_cfgs
from torch import nn

from ..kernels import bilevel_routing_attention, depthwise_conv, route_regions, unpack
from ._builder import StateDict, build_model, unwrap
from ._maps import crop, pad
from ._mlp import Mlp
from ._pyramid import Pyramid, Stage
from ._registry import register_model

__all__ = ["BiFormer"]


class LocalEnhancement(nn.Conv2d):
    """Depthwise convolution of a channels-last map (LEPE, the local term of equation 6).

    What is given as ``residual`` is added.
    """

    def __init__(self, dim: int, kernel_size: int, **dd: Any):
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **dd)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return depthwise_conv(x, self.weight, self.bias, residual)  # (B, H, W, C)


class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention with projections and local enhancement (paper, algorithm 1).

    Takes and returns channels-last maps (B, H, W, C) of any size.

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``.
        n_win: Regions a side.
        topk: Regions that each region attends to.
        side_dwconv: Kernel size of the local enhancement; 0 for none.
        pad_mode: How a map is padded that ``n_win`` does not divide: ``"legacy"`` pads the tokens
            with zeros before the projection, so that padding has the bias as query, key and value
            (as the T, S, B and STL releases do); ``"zero"`` and ``"mask"`` are those of
            ``visattn.kernels.bilevel_routing_attention``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        n_win: int = 7,
        topk: int = 4,
        side_dwconv: int = 5,
        pad_mode: str = "legacy",
        proj_drop: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be divisible by num_heads {num_heads}")
        if pad_mode not in ("legacy", "mask", "zero"):
            raise ValueError(f"pad_mode must be 'legacy', 'mask' or 'zero'; got {pad_mode!r}")
        self.num_heads = num_heads
        self.n_win = n_win
        self.topk = topk
        self.pad_mode = pad_mode

        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = LocalEnhancement(dim, side_dwconv, **dd) if side_dwconv else None
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values (B, H, W, 3, heads, dim), padded in legacy mode."""
        if self.pad_mode == "legacy":
            n_win = self.n_win
            x = pad(x, *((size + n_win - 1) // n_win * n_win for size in x.shape[1:3]))
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1))

    @property
    def op_kwargs(self) -> dict[str, Any]:
        """Geometry that the op is called with."""
        pad_mode = "zero" if self.pad_mode == "zero" else "mask"
        return {"regions": self.n_win, "topk": self.topk, "pad_mode": pad_mode}

    def routing(self, x: torch.Tensor) -> torch.Tensor:
        """Region indices (B, P, topk) that the input (B, H, W, C) is routed by."""
        q, k, _ = self.project(x).unbind(3)
        return route_regions(q, k, **self.op_kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        q, k, v, *again = unpack(self.project(x), 3, () if self.lepe is None else (2,))
        out = bilevel_routing_attention(q, k, v, **self.op_kwargs).flatten(3)
        if self.lepe is not None:
            out = self.lepe(again[0].flatten(3), out)
        return self.proj_drop(self.proj(crop(out, height, width)))

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, n_win={self.n_win}, topk={self.topk}, "
            f"pad_mode={self.pad_mode!r}"
        )


class FullAttention(nn.Module):
    """Attention over the whole map with local enhancement: the last stage.

    Takes and returns channels-last maps (B, H, W, C).

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``.
        side_dwconv: Kernel size of the local enhancement; 0 for none.
        lepe_on: What the local enhancement convolves: the input ``"x"`` or the values ``"v"``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        side_dwconv: int = 5,
        lepe_on: str = "x",
        proj_drop: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be divisible by num_heads {num_heads}")
        if lepe_on not in ("x", "v"):
            raise ValueError(f"lepe_on must be 'x' or 'v'; got {lepe_on!r}")
        self.num_heads = num_heads
        self.lepe_on = lepe_on

        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.lepe = LocalEnhancement(dim, side_dwconv, **dd) if side_dwconv else None
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, dim)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(1, 2).reshape(batch, height, width, channels)
        if self.lepe is not None:
            values = qkv[:, :, 2].reshape(batch, height, width, channels)
            out = self.lepe(x if self.lepe_on == "x" else values, out)
        return self.proj_drop(self.proj(out))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, lepe_on={self.lepe_on!r}"


class BiFormerBlock(nn.Module):
    """Depthwise position convolution, attention and MLP, each residual; maps are NCHW."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 3.0,
        pos_conv: bool = True,
        init_values: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        norm_layer = partial(nn.LayerNorm, eps=1e-6, **dd)

        def scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)

        self.pos_embed = LocalEnhancement(dim, 3, **dd) if pos_conv else None
        self.norm1 = norm_layer(dim)
        self.attn = attn
        self.ls1 = scale()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), drop=proj_drop, **dd)
        self.ls2 = scale()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        if self.pos_embed is not None:
            x = self.pos_embed(x, x)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x.permute(0, 3, 1, 2)


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2."""

    def __init__(self, in_chans: int, dim: int, **dd: Any):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(dim // 2, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class Downsample(nn.Module):
    """Strided convolution with a norm after it, or before it where ``norm_first``."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        kernel_size: int,
        stride: int = 2,
        padding: int = 0,
        norm_first: bool = False,
        **dd: Any,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.norm = nn.BatchNorm2d(in_chans if norm_first else dim, **dd)
        self.conv = nn.Conv2d(in_chans, dim, kernel_size, stride=stride, padding=padding, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x)) if self.norm_first else self.norm(self.conv(x))


class BiFormer(Pyramid):
    """BiFormer, a pyramid of bi-level routing attention (paper, section 3.3).

    Args:
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier.
        depths: Blocks of each stage.
        embed_dims: Channels of each stage.
        head_dim: Width of a head in all stages but the last.
        num_heads_last: Heads of the last stage.
        n_win: Regions a side, for all stages or for each of those that route.
        topks: Regions attended to, for each stage but the last, which attends to everything.
        mlp_ratio: Hidden over input channels of the MLPs.
        side_dwconv: Kernel size of the local enhancement.
        layout: ``"conv"``, the paper's: overlapping convolutions and a position convolution in
            every block; or ``"swin"``: patch embedding and merging, as in Swin-T (STL).
        pad_mode: How maps are padded that ``n_win`` does not divide; see
            ``BiLevelRoutingAttention``.
        lepe_on: What the last stage's local enhancement convolves; see ``FullAttention``.
        init_values: Initial layer scale; None for none.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after projections.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: tuple[int, ...] = (2, 2, 8, 2),
        embed_dims: tuple[int, ...] = (64, 128, 256, 512),
        head_dim: int = 32,
        num_heads_last: int = 8,
        n_win: int | tuple[int, ...] = 7,
        topks: tuple[int, ...] = (1, 4, 16),
        mlp_ratio: float = 3.0,
        side_dwconv: int = 5,
        layout: str = "conv",
        pad_mode: str = "legacy",
        lepe_on: str = "x",
        init_values: float | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        last = len(depths) - 1
        n_wins = (n_win,) * last if isinstance(n_win, int) else tuple(n_win)
        if not (len(embed_dims) == len(depths) and len(n_wins) == len(topks) == last):
            raise ValueError(
                f"{len(depths)} depths need as many embed_dims and one topk and n_win less; got "
                f"embed_dims {embed_dims}, topks {topks}, n_win {n_win}"
            )
        if layout not in ("conv", "swin"):
            raise ValueError(f"layout must be 'conv' or 'swin'; got {layout!r}")
        swin = layout == "swin"
        if swin:
            stem = Downsample(in_chans, embed_dims[0], 4, stride=4, **dd)
        else:
            stem = ConvStem(in_chans, embed_dims[0], **dd)

        drop_paths = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, embed_dims, strict=True)):
            if i == 0:
                downsample = nn.Identity()
            elif swin:
                downsample = Downsample(embed_dims[i - 1], dim, 2, norm_first=True, **dd)
            else:
                downsample = Downsample(embed_dims[i - 1], dim, 3, padding=1, **dd)
            if i < last:
                attn_layer = partial(
                    BiLevelRoutingAttention,
                    num_heads=dim // head_dim,
                    n_win=n_wins[i],
                    topk=topks[i],
                    pad_mode=pad_mode,
                )
            else:
                attn_layer = partial(FullAttention, num_heads=num_heads_last, lepe_on=lepe_on)
            blocks = [
                BiFormerBlock(
                    dim,
                    attn_layer(dim, side_dwconv=side_dwconv, proj_drop=proj_drop_rate, **dd),
                    mlp_ratio=mlp_ratio,
                    pos_conv=not swin,
                    init_values=init_values,
                    proj_drop=proj_drop_rate,
                    drop_path=drop_paths[i][j],
                    **dd,
                )
                for j in range(depth)
            ]
            stages.append(Stage(downsample, blocks))

        super().__init__(
            stem,
            stages,
            nn.BatchNorm2d(embed_dims[-1], **dd),
            embed_dims,
            [4 * 2**i for i in range(len(depths))],
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            **dd,
        )


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "mit",
        "paper_ids": "arXiv:2303.08810",
        "paper_name": "BiFormer: Vision Transformer with Bi-Level Routing Attention",
        "origin_url": "https://github.com/rayleizhu/BiFormer",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "biformer_tiny.in1k": _cfg(),
        "biformer_small.in1k": _cfg(),
        "biformer_base.in1k": _cfg(),
        "biformer_stl.in1k": _cfg(first_conv="stem.conv"),
        "biformer_stl_nchw.in1k": _cfg(first_conv="stem.conv"),
    }
)

_CONV_STEM = (
    (r"^downsample_layers\.0\.0\.", "stem.conv1."),
    (r"^downsample_layers\.0\.1\.", "stem.norm1."),
    (r"^downsample_layers\.0\.3\.", "stem.conv2."),
    (r"^downsample_layers\.0\.4\.", "stem.norm2."),
    (r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.conv."),
    (r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.norm."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
)
_SWIN_STEM = (
    (r"^downsample_layers\.0\.0\.", "stem.conv."),
    (r"^downsample_layers\.0\.1\.", "stem.norm."),
    (r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.norm."),
    (r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.conv."),
)
_BLOCK = (
    (r"\.attn\.(qkv\.qkv|qkv_linear)\.", ".attn.qkv."),
    (r"\.attn\.(wo|output_linear)\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.[23]\.", ".mlp.fc2."),
    (r"\.gamma([12])$", r".ls\1.gamma"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official state dict to ours; returns ours unchanged.

    Takes all released layouts: T, S and B; STL; channels-first STL, whose linear layers are 1x1
    convolutions; each also with the `module.` or `backbone.` prefix of training and of dense
    prediction. The `extra_norms` of dense prediction keep their names: they are no part of the
    network, but of what wraps it.
    """
    state_dict = unwrap(state_dict)
    if not any(key.startswith("downsample_layers.") for key in state_dict):
        return state_dict
    swin = any(re.match(r"stages\.\d\.blocks\.", key) for key in state_dict)
    rules = (*(_SWIN_STEM if swin else _CONV_STEM), *_BLOCK)
    converted = {}
    for key, value in state_dict.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        pointwise = re.search(r"\.(qkv|proj|fc1|fc2)\.weight$", key) and value.ndim == 4
        converted[key] = value.flatten(1) if pointwise else value
    return converted


def _create_biformer(variant: str, pretrained: bool = False, **kwargs: Any) -> BiFormer:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
    return build_model(
        BiFormer,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_PYRAMID_64 = {"embed_dims": (64, 128, 256, 512)}
_PYRAMID_96 = {"embed_dims": (96, 192, 384, 768)}
_SWIN_TINY = {"depths": (2, 2, 6, 2), **_PYRAMID_96, "mlp_ratio": 4.0, "layout": "swin"}


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-T: 13.1 M parameters, 81.4 % ImageNet-1k top-1 in the paper."""
    model_args = {"depths": (2, 2, 8, 2), **_PYRAMID_64}
    return _create_biformer("biformer_tiny", pretrained, **dict(model_args, **kwargs))


@register_model
def biformer_small(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-S: 25.5 M parameters, 83.8 % ImageNet-1k top-1 in the paper."""
    model_args = {"depths": (4, 4, 18, 4), **_PYRAMID_64}
    return _create_biformer("biformer_small", pretrained, **dict(model_args, **kwargs))


@register_model
def biformer_base(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-B: 56.8 M parameters, 84.3 % ImageNet-1k top-1 in the paper."""
    model_args = {"depths": (4, 4, 18, 4), **_PYRAMID_96}
    return _create_biformer("biformer_base", pretrained, **dict(model_args, **kwargs))


@register_model
def biformer_stl(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer in the layout of Swin-T: 28.4 M parameters, 82.7 % ImageNet-1k top-1."""
    return _create_biformer("biformer_stl", pretrained, **dict(_SWIN_TINY, **kwargs))


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """The channels-first release of BiFormer-STL; its last stage enhances the values."""
    model_args = {**_SWIN_TINY, "pad_mode": "zero", "lepe_on": "v"}
    return _create_biformer("biformer_stl_nchw", pretrained, **dict(model_args, **kwargs))
