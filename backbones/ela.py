"""ResNet and MobileNetV2 with efficient local attention

Paper: `ELA: Efficient Local Attention for Deep Convolutional Neural Networks` -
    https://arxiv.org/abs/2403.01123
Original code: https://github.com/Xuwei86/ELA_Code

The layer is that of the released code: one convolution and one norm for both directions, and no
activation before the gate. (`create_attn("ela")` of timm builds another one, with a convolution and
a norm for each direction, one group of norm, and SiLU.) The networks are timm's, with the layer in
the blocks; `ela_t`, `ela_b`, `ela_s` and `ela_l` go where timm takes an attention layer, such as
`timm.create_model("resnet50", block_args=dict(attn_layer=ela_s))`.

What this implementation does differently:
* no classification ResNet was released: here the layer is where it is in the released segmentation
  network (`position="mid"`), without the residual that it has there (`attn_residual=True`)
* the last batch norm of a residual branch starts at zero, as in timm

Checkpoints: the authors' layouts load by `checkpoint_path=FILE`, and so do those of plain networks,
of torchvision and timm: the attention then keeps its initial values.
"""
# The original has no licence; nothing of it is here but names and figures.

import re
from functools import partial
from itertools import accumulate
from math import gcd
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_attn
from timm.models import generate_default_cfgs
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ..kernels import efficient_local_attention
from ..kernels.efficient_local_attention import reference
from ._builder import StateDict, build_model, keep_initial, unwrap
from ._pyramid import SizeChecked
from ._registry import register_model

__all__ = [
    "PRESETS",
    "ELAMobileNetV2",
    "ELAResNet",
    "EfficientLocalAttention",
    "ela_b",
    "ela_l",
    "ela_s",
    "ela_t",
]

# The paper's variants; `group_width` counts channels of a group, not groups.
PRESETS = {
    "t": {"kernel_size": 5, "group_width": 1, "gn_groups": 32},
    "b": {"kernel_size": 7, "group_width": 1, "gn_groups": 16},
    "s": {"kernel_size": 5, "group_width": 8, "gn_groups": 16},
    "l": {"kernel_size": 7, "group_width": 8, "gn_groups": 16},
}


class EfficientLocalAttention(nn.Module):
    """Efficient local attention: a gate of rows times a gate of columns (ELA, section 3.3).

    Takes and returns maps (B, C, H, W) of any size.

    Args:
        channels: Channels.
        kernel_size: Positions of a strip that the convolution sees; odd.
        groups: Groups of the convolution; or else give ``group_width``. By default each channel is
            a group.
        group_width: Channels of a group of the convolution.
        gn_groups: Groups of the norm.
        share: Whether both directions share the convolution and the norm, as in the released code.
        gn_fallback: What to do where ``gn_groups`` does not divide the channels: None raises;
            ``"gcd"`` takes the greatest common divisor for it.
        residual: Whether the input is added to the gated one.
        eps: Added to variances.
        act_layer: Not used, as there is no activation; some of timm's blocks pass theirs.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        groups: int | None = None,
        group_width: int | None = None,
        gn_groups: int = 16,
        share: bool = True,
        gn_fallback: str | None = None,
        residual: bool = False,
        eps: float = 1e-5,
        act_layer: Any = None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; got {kernel_size}")
        self.groups = _conv_groups(channels, groups, group_width)
        self.gn_groups = _norm_groups(channels, gn_groups, gn_fallback)
        self.share = share
        self.residual = residual
        for suffix in ("",) if share else ("_h", "_w"):
            conv = nn.Conv1d(
                channels,
                channels,
                kernel_size,
                padding=kernel_size // 2,
                groups=self.groups,
                bias=False,
                **dd,
            )
            self.add_module(f"conv{suffix}", conv)
            self.add_module(f"gn{suffix}", nn.GroupNorm(self.gn_groups, channels, eps, **dd))

    def parameters_of_op(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights of convolution and norm as the op takes them: where not shared, H's and W's."""
        if self.share:
            return self.conv.weight, self.gn.weight, self.gn.bias
        return (
            torch.stack((self.conv_h.weight, self.conv_w.weight)),
            torch.stack((self.gn_h.weight, self.gn_w.weight)),
            torch.stack((self.gn_h.bias, self.gn_w.bias)),
        )

    @property
    def eps(self) -> float:
        """Added to variances."""
        return (self.gn if self.share else self.gn_h).eps

    def gates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gates of rows (B, C, H) and of columns (B, C, W) that a map is multiplied by."""
        parameters = self.parameters_of_op()
        if self.share:
            parameters = (p[None] for p in parameters)
        return reference.gates(x, *parameters, self.gn_groups, self.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = efficient_local_attention(x, *self.parameters_of_op(), self.gn_groups, self.eps)
        return x + out if self.residual else out

    def extra_repr(self) -> str:
        return f"share={self.share}, residual={self.residual}"


def _conv_groups(channels: int, groups: int | None, width: int | None) -> int:
    if groups is not None and width is not None:
        raise ValueError(f"give groups or group_width, not both; got {groups} and {width}")
    if groups is None:
        width = width or 1
        if channels % width:
            raise ValueError(f"group_width {width} does not divide {channels} channels (C)")
        return channels // width
    if groups < 1 or channels % groups:
        raise ValueError(f"groups {groups} does not divide {channels} channels (C)")
    return groups


def _norm_groups(channels: int, groups: int, fallback: str | None) -> int:
    if fallback not in (None, "gcd"):
        raise ValueError(f"gn_fallback must be None or 'gcd'; got {fallback!r}")
    if channels % groups and fallback is None:
        raise ValueError(
            f"gn_groups {groups} does not divide C={channels} channels: take another variant of "
            f"ELA, or gn_fallback='gcd', which makes it {gcd(groups, channels)} groups"
        )
    return gcd(groups, channels)


ela_t, ela_b, ela_s, ela_l = (
    partial(EfficientLocalAttention, **PRESETS[preset]) for preset in "tbsl"
)


def _attn_layer(preset: str, residual: bool, attn_args: dict[str, Any] | None) -> partial:
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    kwargs = {**PRESETS[preset], "residual": residual, **(attn_args or {})}
    if kwargs.get("groups") is not None and "group_width" not in (attn_args or {}):
        del kwargs["group_width"]
    return partial(EfficientLocalAttention, **kwargs)


class MidBottleneck(Bottleneck):
    """A bottleneck with the attention between its second activation and its last convolution.

    Args:
        *args: Of timm's ``Bottleneck``.
        attn_layer: Attention layer.
        **kwargs: Of timm's ``Bottleneck``.
    """

    def __init__(self, *args: Any, attn_layer: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        dd = {key: kwargs.get(key) for key in ("device", "dtype")}
        self.se = create_attn(attn_layer, self.conv3.in_channels, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        x = self.bn3(self.conv3(self.se(x)))
        if self.drop_path is not None:
            x = self.drop_path(x)
        return self.act3(x + shortcut)


class ELAResNet(SizeChecked, ResNet):
    """timm's ResNet with efficient local attention in every block.

    Args:
        block: ``BasicBlock``, with the attention after the last norm, or ``Bottleneck``.
        layers: Blocks of each stage.
        preset: Variant of the attention: ``"t"``, ``"b"``, ``"s"`` or ``"l"``.
        position: Where bottlenecks have the attention: ``"mid"``, after the second activation, as
            in the released code; or ``"out"``, after the last norm, where timm has its own.
        attn_residual: Whether the attention adds its input, as in the released segmentation.
        attn_args: Arguments of ``EfficientLocalAttention`` beside those of the preset.
        block_args: Further arguments of the blocks.
        **kwargs: Of timm's ``ResNet``.
    """

    def __init__(
        self,
        block: type[nn.Module] = Bottleneck,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        preset: str = "b",
        position: str = "mid",
        attn_residual: bool = False,
        attn_args: dict[str, Any] | None = None,
        block_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if position not in ("mid", "out"):
            raise ValueError(f"position must be 'mid' or 'out'; got {position!r}")
        if position == "mid" and block is Bottleneck:
            block = MidBottleneck
        attn_layer = _attn_layer(preset, attn_residual, attn_args)
        block_args = {**(block_args or {}), "attn_layer": attn_layer}
        super().__init__(block, layers, block_args=block_args, **kwargs)


# Stages of MobileNetV2 in timm's notation: repeats, stride, expansion, channels; `se` is where the
# attention goes, and its ratio has no meaning here.
_MOBILENET_V2 = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24_se1",
    "ir_r3_k3_s2_e6_c32_se1",
    "ir_r4_k3_s2_e6_c64_se1",
    "ir_r3_k3_s1_e6_c96_se1",
    "ir_r3_k3_s2_e6_c160_se1",
    "ir_r1_k3_s1_e6_c320_se1",
)


class ELAMobileNetV2(SizeChecked, EfficientNet):
    """timm's MobileNetV2 with efficient local attention before the projection of inverted blocks.

    Args:
        preset: Variant of the attention: ``"t"``, ``"b"``, ``"s"`` or ``"l"``.
        attn_residual: Whether the attention adds its input.
        attn_args: Arguments of ``EfficientLocalAttention`` beside those of the preset.
        channel_multiplier: Factor of all channels.
        depth_multiplier: Factor of the blocks of each stage.
        act_layer: Activation.
        **kwargs: Of timm's ``EfficientNet``.
    """

    def __init__(
        self,
        preset: str = "b",
        attn_residual: bool = False,
        attn_args: dict[str, Any] | None = None,
        channel_multiplier: float = 1.0,
        depth_multiplier: float = 1.0,
        act_layer: Any = nn.ReLU6,
        **kwargs: Any,
    ):
        round_chs_fn = partial(round_channels, multiplier=channel_multiplier)
        super().__init__(
            decode_arch_def([[stage] for stage in _MOBILENET_V2], depth_multiplier),
            num_features=max(1280, round_chs_fn(1280)),
            round_chs_fn=round_chs_fn,
            act_layer=act_layer,
            se_layer=_attn_layer(preset, attn_residual, attn_args),
            **kwargs,
        )


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "none stated",
        "paper_ids": "arXiv:2403.01123",
        "paper_name": "ELA: Efficient Local Attention for Deep Convolutional Neural Networks",
        "origin_url": "https://github.com/Xuwei86/ELA_Code",
        **kwargs,
    }


_MOBILE = {"first_conv": "conv_stem", "classifier": "classifier"}

default_cfgs = generate_default_cfgs(
    {
        **{
            f"elaresnet{depth}_{preset}.untrained": _cfg()
            for depth in (18, 34, 50, 101)
            for preset in PRESETS
        },
        **{f"elamobilenetv2_100_{preset}.untrained": _cfg(**_MOBILE) for preset in "bsl"},
    }
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official or a plain ResNet's state dict to ours; returns ours unchanged.

    Takes the segmentation network's, whose attention is `feat0` in basic blocks and `feat1` in
    bottlenecks, and those of ResNets without attention.
    """
    converted = {
        re.sub(r"^(layer\d\.\d+)\.feat[01]\.", r"\1.se.", key): value
        for key, value in unwrap(state_dict).items()
    }
    return keep_initial(converted, model, r"\.se\.")


# Names in a block by those in the `conv` of official ones and of torchvision's.
_DEPTHWISE = {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"}
_INVERTED = {"0": "conv_pw", "1": "bn1", "3": "conv_dw", "4": "bn2"}
_WITH_ELA = {**_INVERTED, "6": "se", "7": "conv_pwl", "8": "bn3"}
_PLAIN = {**_INVERTED, "6": "conv_pwl", "7": "bn3"}
_TORCHVISION_DEPTHWISE = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
_TORCHVISION = {
    "0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"
}  # fmt: skip
_ENDS = (
    (r"^features\.0\.0\.", "conv_stem."),
    (r"^features\.0\.1\.", "bn1."),
    (r"^(?:features\.\d+|conv)\.0\.", "conv_head."),
    (r"^(?:features\.\d+|conv)\.1\.", "bn2."),
    (r"^classifier\.1\.", "classifier."),
)


def mobilenet_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official or a plain MobileNetV2's state dict to ours; returns ours unchanged.

    Takes that of the released training, whose attention is `features.<i>.conv.6`, the same without
    attention, torchvision's and timm's.
    """
    state_dict = unwrap(state_dict)
    if any(key.startswith("features.") for key in state_dict):
        state_dict = _from_features(state_dict, [len(stage) for stage in model.blocks])
    return keep_initial(state_dict, model, r"\.se\.")


def _from_features(state_dict: StateDict, depths: list[int]) -> StateDict:
    ends = list(accumulate(depths))
    if "features.1.conv.0.0.weight" in state_dict:
        first, others = _TORCHVISION_DEPTHWISE, _TORCHVISION
    else:
        has_attention = any(re.search(r"\.conv\.8\.", key) for key in state_dict)
        first, others = _DEPTHWISE, _WITH_ELA if has_attention else _PLAIN

    def rename(match: re.Match[str]) -> str:
        index = int(match[1]) - 1
        stage = next((s for s, end in enumerate(ends) if index < end), len(ends) - 1)
        name = (first if index == 0 else others).get(match[2])
        block = index - ends[stage] + depths[stage]
        return match[0] if name is None else f"blocks.{stage}.{block}.{name}."

    def convert(key: str) -> str:
        block = re.sub(r"^features\.(\d+)\.conv\.(\d(?:\.\d)?)\.", rename, key)
        if block != key:
            return block
        for pattern, replacement in _ENDS:
            key, count = re.subn(pattern, replacement, key)
            if count:
                break
        return key

    return {convert(key): value for key, value in state_dict.items()}


def _create_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3, 4))
    return build_model(
        ELAResNet,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


def _create_mobilenet(variant: str, pretrained: bool = False, **kwargs: Any) -> ELAMobileNetV2:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3, 4))
    return build_model(
        ELAMobileNetV2,
        variant,
        pretrained,
        mobilenet_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_RESNET18 = {"block": BasicBlock, "layers": (2, 2, 2, 2)}
_RESNET34 = {"block": BasicBlock, "layers": (3, 4, 6, 3)}
_RESNET50 = {"block": Bottleneck, "layers": (3, 4, 6, 3)}
_RESNET101 = {"block": Bottleneck, "layers": (3, 4, 23, 3)}


@register_model
def elaresnet18_t(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-18 with ELA-T: 11.70 M parameters."""
    model_args = {**_RESNET18, "preset": "t"}
    return _create_resnet("elaresnet18_t", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet18_b(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-18 with ELA-B: 11.71 M parameters."""
    model_args = {**_RESNET18, "preset": "b"}
    return _create_resnet("elaresnet18_b", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet18_s(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-18 with ELA-S: 11.77 M parameters."""
    model_args = {**_RESNET18, "preset": "s"}
    return _create_resnet("elaresnet18_s", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet18_l(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-18 with ELA-L: 11.80 M parameters."""
    model_args = {**_RESNET18, "preset": "l"}
    return _create_resnet("elaresnet18_l", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet34_t(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-34 with ELA-T: 21.82 M parameters."""
    model_args = {**_RESNET34, "preset": "t"}
    return _create_resnet("elaresnet34_t", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet34_b(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-34 with ELA-B: 21.83 M parameters."""
    model_args = {**_RESNET34, "preset": "b"}
    return _create_resnet("elaresnet34_b", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet34_s(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-34 with ELA-S: 21.96 M parameters."""
    model_args = {**_RESNET34, "preset": "s"}
    return _create_resnet("elaresnet34_s", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet34_l(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-34 with ELA-L: 22.02 M parameters."""
    model_args = {**_RESNET34, "preset": "l"}
    return _create_resnet("elaresnet34_l", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet50_t(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-50 with ELA-T: 25.58 M parameters."""
    model_args = {**_RESNET50, "preset": "t"}
    return _create_resnet("elaresnet50_t", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet50_b(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-50 with ELA-B: 25.59 M parameters."""
    model_args = {**_RESNET50, "preset": "b"}
    return _create_resnet("elaresnet50_b", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet50_s(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-50 with ELA-S: 25.72 M parameters."""
    model_args = {**_RESNET50, "preset": "s"}
    return _create_resnet("elaresnet50_s", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet50_l(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-50 with ELA-L: 25.78 M parameters."""
    model_args = {**_RESNET50, "preset": "l"}
    return _create_resnet("elaresnet50_l", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet101_t(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-101 with ELA-T: 44.61 M parameters."""
    model_args = {**_RESNET101, "preset": "t"}
    return _create_resnet("elaresnet101_t", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet101_b(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-101 with ELA-B: 44.62 M parameters."""
    model_args = {**_RESNET101, "preset": "b"}
    return _create_resnet("elaresnet101_b", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet101_s(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-101 with ELA-S: 44.89 M parameters."""
    model_args = {**_RESNET101, "preset": "s"}
    return _create_resnet("elaresnet101_s", pretrained, **dict(model_args, **kwargs))


@register_model
def elaresnet101_l(pretrained: bool = False, **kwargs: Any) -> ELAResNet:
    """ResNet-101 with ELA-L: 45.02 M parameters."""
    model_args = {**_RESNET101, "preset": "l"}
    return _create_resnet("elaresnet101_l", pretrained, **dict(model_args, **kwargs))


@register_model
def elamobilenetv2_100_b(pretrained: bool = False, **kwargs: Any) -> ELAMobileNetV2:
    """MobileNetV2 with ELA-B: 3.57 M parameters."""
    model_args = {"preset": "b"}
    return _create_mobilenet("elamobilenetv2_100_b", pretrained, **dict(model_args, **kwargs))


@register_model
def elamobilenetv2_100_s(pretrained: bool = False, **kwargs: Any) -> ELAMobileNetV2:
    """MobileNetV2 with ELA-S: 3.80 M parameters."""
    model_args = {"preset": "s"}
    return _create_mobilenet("elamobilenetv2_100_s", pretrained, **dict(model_args, **kwargs))


@register_model
def elamobilenetv2_100_l(pretrained: bool = False, **kwargs: Any) -> ELAMobileNetV2:
    """MobileNetV2 with ELA-L: 3.92 M parameters."""
    model_args = {"preset": "l"}
    return _create_mobilenet("elamobilenetv2_100_l", pretrained, **dict(model_args, **kwargs))
