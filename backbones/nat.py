"""Neighborhood Attention Transformers: NAT, DiNAT and DiNAT_s

Papers:
    - `Neighborhood Attention Transformer` - https://arxiv.org/abs/2204.07143 (CVPR 2023)
    - `Dilated Neighborhood Attention Transformer` - https://arxiv.org/abs/2209.15001
Original code: https://github.com/SHI-Labs/Neighborhood-Attention-Transformer

The functions are those of the released models, with their learnable relative position biases, which
current NATTEN has not. DiNAT is NAT with dilations; DiNAT_s has the layout of Swin.

What this implementation does differently:
* any input size: where a window is larger than a map, `pad_mode` pads the map, as the releases do,
  or clips the window
* preprocessing is that of the released training

Checkpoints: the authors' files load as released, by `checkpoint_path=FILE`, and so do the ones of
`transformers`.
"""
# The original is released under the MIT License.

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerScale, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn

from ..kernels import neighborhood_attention, unpack
from ._builder import NEXT_STAGE, StateDict, build_model, rename, unwrap
from ._maps import crop, pad
from ._mlp import Mlp
from ._pyramid import Pyramid, Stage
from ._registry import register_model

__all__ = ["NeighborhoodAttention", "NeighborhoodAttentionTransformer"]


class NeighborhoodAttention(nn.Module):
    """Neighborhood attention with projections and relative position bias (NAT, section 3.1).

    Takes and returns channels-last maps (B, H, W, C) of any size.

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``.
        kernel_size: Tokens of a window a side.
        dilation: Distance of neighboring tokens of a window.
        pad_mode: What happens to a map smaller than ``kernel_size * dilation`` a side: ``"legacy"``
            pads it at the bottom and right with zeros before the projection, so that padding has
            the bias as key and value and is attended to (as the releases do); ``"clip"`` makes the
            window as large as fits.
        proj_drop: Dropout after the projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int = 7,
        dilation: int = 1,
        pad_mode: str = "legacy",
        proj_drop: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be divisible by num_heads {num_heads}")
        if pad_mode not in ("legacy", "clip"):
            raise ValueError(f"pad_mode must be 'legacy' or 'clip'; got {pad_mode!r}")
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.pad_mode = pad_mode

        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        side = 2 * kernel_size - 1
        self.rpb = nn.Parameter(torch.empty(num_heads, side, side, **dd))
        trunc_normal_(self.rpb, std=0.02)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        if self.pad_mode == "legacy":
            least = self.kernel_size * self.dilation
            x = pad(x, *(torch.sym_max(size, least) for size in (height, width)))
        q, k, v = unpack(self.qkv(x).unflatten(-1, (3, self.num_heads, -1)), 3)
        x = neighborhood_attention(
            q,
            k,
            v,
            self.kernel_size,
            self.dilation,
            rpb=self.rpb,
            clip=self.pad_mode == "clip",
        )
        return self.proj_drop(self.proj(crop(x.flatten(3), height, width)))

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, kernel_size={self.kernel_size}, "
            f"dilation={self.dilation}, pad_mode={self.pad_mode!r}"
        )


class NATBlock(nn.Module):
    """Neighborhood attention and MLP, each residual; maps are channels-last."""

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 3.0,
        init_values: float | None = None,
        norm_eps: float = 1e-5,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        **dd: Any,
    ):
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)

        self.norm1 = nn.LayerNorm(dim, norm_eps, **dd)
        self.attn = attn
        self.ls1 = scale()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, norm_eps, **dd)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), drop=proj_drop, **dd)
        self.ls2 = scale()
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2 and a norm; NCHW images to channels-last maps."""

    def __init__(self, in_chans: int, dim: int, **dd: Any):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv2(self.conv1(x)).permute(0, 2, 3, 1))


class PatchStem(nn.Module):
    """Square patches and a norm; borders that patches do not divide are zero-padded."""

    def __init__(self, in_chans: int, dim: int, patch_size: int = 4, **dd: Any):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beyond = self.conv.kernel_size[0] - 1
        x = F.pad(x, (0, beyond, 0, beyond))  # what is no whole patch then is not read
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class ConvDownsample(nn.Module):
    """3x3 convolution of stride 2, then a norm; maps are channels-last."""

    def __init__(self, in_chans: int, dim: int, bias: bool = False, **dd: Any):
        super().__init__()
        self.reduction = nn.Conv2d(in_chans, dim, 3, stride=2, padding=1, bias=bias, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Norm and projection of 2x2 tokens, as in Swin; odd sides are zero-padded."""

    def __init__(self, in_chans: int, dim: int, **dd: Any):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_chans, **dd)
        self.reduction = nn.Linear(4 * in_chans, dim, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = ((size + 1) // 2 for size in x.shape[1:3])
        x = pad(x, 2 * rows, 2 * columns)
        rows, columns = (2 * torch.arange(count, device=x.device) for count in (rows, columns))
        x = [
            x.index_select(1, rows + i).index_select(2, columns + j)
            for j in range(2)
            for i in range(2)
        ]
        return self.reduction(self.norm(torch.cat(x, -1)))


class NeighborhoodAttentionTransformer(Pyramid):
    """A pyramid of neighborhood attention (NAT, section 3.3; DiNAT, section 3.2).

    Args:
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier.
        depths: Blocks of each stage.
        embed_dim: Channels of the first stage; they double from stage to stage.
        head_dim: Width of a head.
        kernel_size: Tokens of a window a side.
        dilations: For each stage, dilations that its blocks take in turn; None for none.
        mlp_ratio: Hidden over input channels of the MLPs.
        layout: ``"conv"``, overlapping convolutions between stages (NAT and DiNAT); or ``"swin"``,
            patch embedding and merging (DiNAT_s).
        pad_mode: What happens to maps smaller than a window; see ``NeighborhoodAttention``.
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
        depths: tuple[int, ...] = (3, 4, 6, 5),
        embed_dim: int = 64,
        head_dim: int = 32,
        kernel_size: int = 7,
        dilations: tuple[tuple[int, ...], ...] | None = None,
        mlp_ratio: float = 3.0,
        layout: str = "conv",
        pad_mode: str = "legacy",
        init_values: float | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if dilations is None:
            dilations = ((1,),) * len(depths)
        if len(dilations) != len(depths):
            raise ValueError(
                f"dilations must have one tuple for each of {len(depths)} stages; got {dilations}"
            )
        if layout not in ("conv", "swin"):
            raise ValueError(f"layout must be 'conv' or 'swin'; got {layout!r}")
        if embed_dim % head_dim:
            raise ValueError(f"embed_dim {embed_dim} must be divisible by head_dim {head_dim}")
        swin = layout == "swin"
        stem = (PatchStem if swin else ConvStem)(in_chans, embed_dim, **dd)
        downsample_layer = PatchMerging if swin else ConvDownsample
        dims = [embed_dim * 2**i for i in range(len(depths))]
        drop_paths = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            attn_layer = partial(
                NeighborhoodAttention,
                num_heads=dim // head_dim,
                kernel_size=kernel_size,
                pad_mode=pad_mode,
                proj_drop=proj_drop_rate,
            )
            blocks = [
                NATBlock(
                    dim,
                    attn_layer(dim, dilation=dilations[i][j % len(dilations[i])], **dd),
                    mlp_ratio=mlp_ratio,
                    init_values=init_values,
                    proj_drop=proj_drop_rate,
                    drop_path=drop_paths[i][j],
                    **dd,
                )
                for j in range(depth)
            ]
            downsample = downsample_layer(dim // 2, dim, **dd) if i else nn.Identity()
            stages.append(Stage(downsample, blocks))

        super().__init__(
            stem,
            stages,
            nn.LayerNorm(dims[-1], **dd),
            dims,
            [4 * 2**i for i in range(len(depths))],
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            channels_last=True,
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
        "paper_ids": "arXiv:2209.15001",
        "paper_name": "Dilated Neighborhood Attention Transformer",
        "origin_url": "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
        **kwargs,
    }


_NAT = {
    "paper_ids": "arXiv:2204.07143",
    "paper_name": "Neighborhood Attention Transformer",
}
_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}
_SWIN = {"first_conv": "stem.conv"}
_NAT_URL = "https://shi-labs.com/projects/nat/checkpoints/CLS/"
_DINAT_URL = "https://shi-labs.com/projects/dinat/checkpoints/"
_1K, _22K = f"{_DINAT_URL}imagenet1k/", f"{_DINAT_URL}imagenet22k/"

default_cfgs = generate_default_cfgs(
    {
        "nat_mini.in1k": _cfg(f"{_NAT_URL}nat_mini.pth", **_NAT),
        "nat_tiny.in1k": _cfg(f"{_NAT_URL}nat_tiny.pth", **_NAT),
        "nat_small.in1k": _cfg(f"{_NAT_URL}nat_small.pth", **_NAT),
        "nat_base.in1k": _cfg(f"{_NAT_URL}nat_base.pth", **_NAT),
        "dinat_mini.in1k": _cfg(f"{_1K}dinat_mini_in1k_224.pth"),
        "dinat_tiny.in1k": _cfg(f"{_1K}dinat_tiny_in1k_224.pth"),
        "dinat_small.in1k": _cfg(f"{_1K}dinat_small_in1k_224.pth"),
        "dinat_base.in1k": _cfg(f"{_1K}dinat_base_in1k_224.pth"),
        "dinat_large.in22k_ft_in1k": _cfg(f"{_1K}dinat_large_in22k_in1k_224.pth"),
        "dinat_large_384.in22k_ft_in1k": _cfg(f"{_1K}dinat_large_in22k_in1k_384.pth", **_384),
        "dinat_large_384_11x11.in22k_ft_in1k": _cfg(
            f"{_1K}dinat_large_in22k_in1k_384_11x11.pth", **_384
        ),
        "dinat_large_21k.in22k": _cfg(f"{_22K}dinat_large_in22k_224.pth"),
        "dinat_large_21k_11x11.in22k": _cfg(f"{_22K}dinat_large_in22k_224_11x11interp.pth"),
        "dinat_s_tiny.in1k": _cfg(f"{_1K}dinat_s_tiny_in1k_224.pth", **_SWIN),
        "dinat_s_small.in1k": _cfg(f"{_1K}dinat_s_small_in1k_224.pth", **_SWIN),
        "dinat_s_base.in1k": _cfg(f"{_1K}dinat_s_base_in1k_224.pth", **_SWIN),
        "dinat_s_large.in22k_ft_in1k": _cfg(f"{_1K}dinat_s_large_in1k_224.pth", **_SWIN),
        "dinat_s_large_384.in22k_ft_in1k": _cfg(
            f"{_1K}dinat_s_large_in1k_384.pth", **_SWIN, **_384
        ),
        "dinat_s_large_21k.in22k": _cfg(f"{_22K}dinat_s_large_in22k_224.pth", **_SWIN),
    }
)

_HUGGING_FACE = (
    (r"^(?:di)?nat\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.levels\.(\d)\.layers\.", r"levels.\1.blocks."),
    (r"^encoder\.", ""),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
_OFFICIAL = (
    (r"^patch_embed\.proj\.(weight|bias)$", r"stem.conv.\1"),
    (r"^patch_embed\.proj\.0\.", "stem.conv1."),
    (r"^patch_embed\.proj\.1\.", "stem.conv2."),
    (r"^patch_embed\.norm\.", "stem.norm."),
    NEXT_STAGE,
    (r"^(?:levels|layers)\.", "stages."),
    (r"\.gamma([12])$", r".ls\1.gamma"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official state dict to ours; keeps the names of ours.

    Takes the releases of NAT, DiNAT and DiNAT_s, those of dense prediction (prefix `backbone.`; the
    norms of outputs, `norm0` and so on, keep their names: they are of what wraps the network) and
    those of `transformers`. Bias tables of another window size are resized, bicubically.
    """
    state_dict = unwrap(state_dict)
    if any(key.endswith(".attention.self.query.weight") for key in state_dict):
        state_dict = _from_hugging_face(state_dict)
    if any(key.startswith("patch_embed.") for key in state_dict):
        state_dict = rename(state_dict, _OFFICIAL)
    own = dict(model.named_parameters())
    return {key: fit_table(value, own.get(key)) for key, value in state_dict.items()}


def _from_hugging_face(state_dict: StateDict) -> StateDict:
    """Official names for those of `transformers`: projections joined, layer scales apart."""
    state_dict = rename(state_dict, _HUGGING_FACE)
    for key in [key for key in state_dict if ".attn.query." in key]:
        parts = (state_dict.pop(key.replace("query", part)) for part in ("query", "key", "value"))
        state_dict[key.replace("query", "qkv")] = torch.cat(list(parts))
    for key in [key for key in state_dict if key.endswith(".layer_scale_parameters")]:
        scales = state_dict.pop(key)
        for i in range(2):
            state_dict[key.replace("layer_scale_parameters", f"gamma{i + 1}")] = scales[i]
    return state_dict


def fit_table(value: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    """A relative position bias (heads, rows, columns) in the size of the model's own."""
    fits = own is not None and own.ndim == value.ndim == 3
    return resize_table(value, own.shape[1:]) if fits else value


def resize_table(table: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A relative position bias (heads, rows, columns) of another size, by bicubic interpolation."""
    if all(isinstance(a, int) and a == b for a, b in zip(size, table.shape[1:], strict=True)):
        return table
    resized = F.interpolate(table[None].float(), size, mode="bicubic", align_corners=False)
    return resized[0].to(table.dtype)


def _create_nat(
    variant: str, pretrained: bool = False, **kwargs: Any
) -> NeighborhoodAttentionTransformer:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
    return build_model(
        NeighborhoodAttentionTransformer,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_MINI = {"depths": (3, 4, 6, 5), "embed_dim": 64, "mlp_ratio": 3.0}
_TINY = {"depths": (3, 4, 18, 5), "embed_dim": 64, "mlp_ratio": 3.0}
_SMALL = {"depths": (3, 4, 18, 5), "embed_dim": 96, "mlp_ratio": 2.0}
_BASE = {"depths": (3, 4, 18, 5), "embed_dim": 128, "mlp_ratio": 2.0, "init_values": 1e-5}
_LARGE = {"depths": (3, 4, 18, 5), "embed_dim": 192, "mlp_ratio": 2.0}
_S_TINY = {"depths": (2, 2, 6, 2), "embed_dim": 96, "mlp_ratio": 4.0, "layout": "swin"}
_S_SMALL = {**_S_TINY, "depths": (2, 2, 18, 2)}
_S_BASE = {**_S_SMALL, "embed_dim": 128}
_S_LARGE = {**_S_SMALL, "embed_dim": 192}
_D224 = {"dilations": ((1, 8), (1, 4), (1, 2), (1,))}
_D384 = {"dilations": ((1, 13), (1, 6), (1, 3), (1,))}


@register_model
def nat_mini(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Mini: 20.0 M parameters, 81.8 % ImageNet-1k top-1 in the paper."""
    model_args = _MINI
    return _create_nat("nat_mini", pretrained, **dict(model_args, **kwargs))


@register_model
def nat_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Tiny: 27.9 M parameters, 83.2 % ImageNet-1k top-1 in the paper."""
    model_args = _TINY
    return _create_nat("nat_tiny", pretrained, **dict(model_args, **kwargs))


@register_model
def nat_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Small: 50.7 M parameters, 83.7 % ImageNet-1k top-1 in the paper."""
    model_args = {**_SMALL, "init_values": 1e-5}
    return _create_nat("nat_small", pretrained, **dict(model_args, **kwargs))


@register_model
def nat_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """NAT-Base: 89.8 M parameters, 84.3 % ImageNet-1k top-1 in the paper."""
    model_args = _BASE
    return _create_nat("nat_base", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_mini(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Mini: 20.0 M parameters, 81.8 % ImageNet-1k top-1."""
    model_args = {**_MINI, **_D224}
    return _create_nat("dinat_mini", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Tiny: 27.9 M parameters, 82.7 % ImageNet-1k top-1."""
    model_args = {**_TINY, **_D224}
    return _create_nat("dinat_tiny", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Small: 50.7 M parameters, 83.8 % ImageNet-1k top-1."""
    model_args = {**_SMALL, **_D224}
    return _create_nat("dinat_small", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Base: 89.8 M parameters, 84.4 % ImageNet-1k top-1."""
    model_args = {**_BASE, **_D224}
    return _create_nat("dinat_base", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_large(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Large: 200.9 M parameters, 86.6 % ImageNet-1k top-1 from ImageNet-22k."""
    model_args = {**_LARGE, **_D224}
    return _create_nat("dinat_large", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_large_384(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Large at 384 pixels: 87.4 % ImageNet-1k top-1 from ImageNet-22k."""
    model_args = {**_LARGE, **_D384}
    return _create_nat("dinat_large_384", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_large_384_11x11(
    pretrained: bool = False, **kwargs: Any
) -> NeighborhoodAttentionTransformer:
    """DiNAT-Large at 384 pixels, windows of 11 x 11: 87.5 % ImageNet-1k top-1."""
    model_args = {**_LARGE, **_D224, "kernel_size": 11}
    return _create_nat("dinat_large_384_11x11", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_large_21k(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT-Large as trained on ImageNet-22k; pass the file's ``num_classes``."""
    model_args = {**_LARGE, **_D224}
    return _create_nat("dinat_large_21k", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_large_21k_11x11(
    pretrained: bool = False, **kwargs: Any
) -> NeighborhoodAttentionTransformer:
    """``dinat_large_21k`` with bias tables resized for windows of 11 x 11."""
    model_args = {**_LARGE, **_D224, "kernel_size": 11}
    return _create_nat("dinat_large_21k_11x11", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_s_tiny(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT_s-Tiny: 28.3 M parameters, 81.8 % ImageNet-1k top-1."""
    model_args = {**_S_TINY, **_D224}
    return _create_nat("dinat_s_tiny", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_s_small(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT_s-Small: 49.6 M parameters, 83.5 % ImageNet-1k top-1."""
    model_args = {**_S_SMALL, **_D224}
    return _create_nat("dinat_s_small", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_s_base(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT_s-Base: 87.8 M parameters, 83.8 % ImageNet-1k top-1."""
    model_args = {**_S_BASE, **_D224}
    return _create_nat("dinat_s_base", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_s_large(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT_s-Large: 196.5 M parameters, 86.5 % ImageNet-1k top-1 from ImageNet-22k."""
    model_args = {**_S_LARGE, **_D224}
    return _create_nat("dinat_s_large", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_s_large_384(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT_s-Large at 384 pixels: 87.4 % ImageNet-1k top-1 from ImageNet-22k."""
    model_args = {**_S_LARGE, **_D384}
    return _create_nat("dinat_s_large_384", pretrained, **dict(model_args, **kwargs))


@register_model
def dinat_s_large_21k(pretrained: bool = False, **kwargs: Any) -> NeighborhoodAttentionTransformer:
    """DiNAT_s-Large as trained on ImageNet-22k; pass the file's ``num_classes``."""
    model_args = {**_S_LARGE, **_D224}
    return _create_nat("dinat_s_large_21k", pretrained, **dict(model_args, **kwargs))
