"""Agent Swin

Paper: `Agent Attention: On the Integration of Softmax and Linear Attention`
    - https://arxiv.org/abs/2312.08874 (ECCV 2024)
Original code: https://github.com/LeapLabTHU/Agent-Attention

Swin Transformer whose first blocks attend to the whole map by way of agents; the blocks after them
have windows.

What this implementation does differently:
* one model for classification and dense prediction: any input size, on which it does what the
  authors' dense models do; borders that patches and windows do not divide are zero-padded
* windows of a map with a side no longer than a window are not shifted, as in the authors'
  classifiers; their dense models do shift such windows
* the names of parameters, and biases in the layout of the kernel

Checkpoints: the authors' files load as released, by `checkpoint_path=FILE`.
"""
# The original states no licence; nothing of its code is in here.

from functools import partial
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn

from ..kernels import unpack, window_attention
from ._agent import (
    AgentAttention,
    Size,
    agent_cfg,
    check_stages,
    convert_biases,
    fit_biases,
    hybrid_blocks,
    set_map_size,
)
from ._builder import NEXT_STAGE, StateDict, build_model, rename, unwrap
from ._maps import crop, pad
from ._pyramid import Pyramid, Stage
from ._registry import register_model
from .nat import PatchMerging, PatchStem, fit_table, resize_table
from .nat_isotropic import expand_table

__all__ = ["AgentSwin", "WindowAttention"]


class WindowAttention(nn.Module):
    """Attention within windows of a map, with projections and relative position bias (Swin).

    Takes and returns channels-last maps (B, H, W, C). A map that windows do not divide is padded
    with zeros before the projection, so that padding has the bias as key and value and is attended
    to, as in Swin.

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``.
        window_size: Tokens of a window a side.
        shifted: Whether windows are shifted by half their size on maps larger than a window.
        proj_drop: Dropout after the projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shifted: bool = False,
        proj_drop: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} must be divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.shifted = shifted

        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        side = 2 * window_size - 1
        self.rpb = nn.Parameter(torch.empty(num_heads, side, side, **dd))
        trunc_normal_(self.rpb, std=0.02)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    @torch.no_grad()
    def set_window_size(self, window_size: int) -> None:
        """Makes the bias a parameter of another window size."""
        self.window_size = window_size
        side = 2 * window_size - 1
        self.rpb = nn.Parameter(resize_table(self.rpb, (side, side)).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        window, shift = self.window_size, self.window_size // 2 if self.shifted else 0
        x = pad(x, *((side + window - 1) // window * window for side in (height, width)))
        q, k, v = unpack(self.qkv(x).unflatten(-1, (3, self.num_heads, -1)), 3)
        bias = expand_table(self.rpb)
        x = window_attention(q, k, v, window, shift, bias, shift_small_maps=False)
        return self.proj_drop(self.proj(crop(x.flatten(3), height, width)))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, window_size={self.window_size}, shifted={self.shifted}"


class AgentSwin(Pyramid):
    """Swin Transformer with agent attention in the first blocks of stages (paper, section 4.3).

    Args:
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier.
        img_size: Pixels a side that the biases are for; any other size works, too.
        depths: Blocks of each stage.
        agent_depths: How many of them, the first, have agents.
        embed_dim: Channels of the first stage; they double from stage to stage.
        head_dim: Width of a head.
        num_agents: Agents of each stage, square numbers.
        agent_shapes: Rows and columns of the agents that are pooled in each stage; the squares of
            ``num_agents`` by default. The authors' dense models have (9, 9), (12, 12), (14, 14) and
            (7, 7).
        window_size: Tokens a side of the windows of other blocks; by default a 32nd of the shorter
            side of ``img_size``, at least 7.
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
        img_size: int | Size = 224,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        agent_depths: tuple[int, ...] = (2, 2, 6, 0),
        embed_dim: int = 96,
        head_dim: int = 32,
        num_agents: tuple[int, ...] = (9, 16, 49, 49),
        agent_shapes: tuple[Size | None, ...] | None = None,
        window_size: int | None = None,
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
        if agent_shapes is None:
            agent_shapes = (None,) * len(depths)
        check_stages(
            len(depths),
            agent_depths=agent_depths,
            num_agents=num_agents,
            agent_shapes=agent_shapes,
        )
        img_size = to_2tuple(img_size)
        if window_size is None:
            window_size = max(7, min(img_size) // 32)
        dims = [embed_dim * 2**i for i in range(len(depths))]
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, map_size) in enumerate(
            zip(dims, _map_sizes(img_size, len(depths)), strict=True)
        ):
            shared = {"proj_drop": proj_drop_rate, **dd}
            heads = dim // head_dim
            windows = partial(WindowAttention, dim, heads, window_size, **shared)
            blocks = hybrid_blocks(
                dim,
                agent_depths[i],
                drop_paths[i],
                partial(
                    *(AgentAttention, dim, heads, map_size, num_agents[i], agent_shapes[i]),
                    **shared,
                ),
                (partial(windows, shifted=False), partial(windows, shifted=True)),
                mlp_ratio=mlp_ratio,
                **shared,
            )
            downsample = PatchMerging(dim // 2, dim, **dd) if i else nn.Identity()
            stages.append(Stage(downsample, blocks))

        super().__init__(
            PatchStem(in_chans, embed_dim, **dd),
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

    def set_input_size(
        self, img_size: int | Size | None = None, window_size: int | None = None
    ) -> None:
        """Resizes parameters for images of another size, as for fine-tuning to it.

        Args:
            img_size: Pixels a side that the biases of agents are for; unchanged by default.
            window_size: Tokens a side of windows; unchanged by default.
        """
        if img_size is not None:
            sizes = _map_sizes(to_2tuple(img_size), len(self.stages))
            for stage, size in zip(self.stages, sizes, strict=True):
                set_map_size(stage, size)
        if window_size is not None:
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.set_window_size(window_size)


def _map_sizes(img_size: Size, count: int) -> list[Size]:
    """Rows and columns of tokens of each stage."""
    return [tuple(-(-side // (4 * 2**i)) for side in img_size) for i in range(count)]


_cfg = agent_cfg
_288 = {"input_size": (3, 288, 288), "pool_size": (9, 9), "crop_pct": 1.0}
_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "agent_swin_tiny.in1k": _cfg("a2ddc1190c224f768a41"),
        "agent_swin_small.in1k": _cfg("f607172c9fea4d6e99bb"),
        "agent_swin_small_288.in1k": _cfg("09760394e93b4046a25e", **_288),
        "agent_swin_base.in1k": _cfg("4fcd2d0114bb490483c3"),
        "agent_swin_base_384.in1k": _cfg("bb84ee9058954706a557", **_384),
    }
)

_OFFICIAL = (
    (r"^patch_embed\.proj\.", "stem.conv."),
    (r"^patch_embed\.norm\.", "stem.norm."),
    NEXT_STAGE,
    (r"^layers\.", "stages."),
    (r"\.relative_position_bias_table$", ".rpb"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official state dict to ours; keeps the names of ours.

    Takes the releases of classification and of dense prediction (prefix `backbone.`; the norms of
    outputs, `norm0` and so on, keep their names: they are of what wraps the network). Tables of
    indices and masks are made anew, and dropped. Biases of another size are resized: those of
    agents linearly, those of windows bicubically.
    """
    converted = {}
    for key, value in unwrap(state_dict).items():
        if key.endswith((".relative_position_index", ".attn_mask")):
            continue
        if key.endswith(".relative_position_bias_table"):
            # From rows of offsets from key to query, to a map of those from query to key.
            side = round(len(value) ** 0.5)
            value = value.T.unflatten(1, (side, side)).flip(1, 2).contiguous()
        converted[key] = value
    converted = fit_biases(convert_biases(rename(converted, _OFFICIAL)), model)
    own = dict(model.named_parameters())
    return {
        key: fit_table(value, own.get(key)) if key.endswith(".rpb") else value
        for key, value in converted.items()
    }


def _create_agent_swin(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
    return build_model(
        AgentSwin,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_TINY = {"depths": (2, 2, 6, 2), "agent_depths": (2, 2, 6, 0), "embed_dim": 96}
_SMALL = {"depths": (2, 2, 18, 2), "agent_depths": (2, 2, 0, 0), "embed_dim": 96}
_BASE = {"depths": (2, 2, 18, 2), "agent_depths": (2, 2, 2, 0), "embed_dim": 128}


@register_model
def agent_swin_tiny(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-T: 28.9 M parameters, 82.6 % ImageNet-1k top-1 in the paper."""
    model_args = _TINY
    return _create_agent_swin("agent_swin_tiny", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_swin_small(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-S: 49.7 M parameters, 83.7 % ImageNet-1k top-1 in the paper."""
    model_args = _SMALL
    return _create_agent_swin("agent_swin_small", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_swin_small_288(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-S at 288 pixels: 84.1 % ImageNet-1k top-1 in the paper."""
    model_args = {**_SMALL, "img_size": 288}
    return _create_agent_swin("agent_swin_small_288", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_swin_base(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-B: 88.1 M parameters, 84.0 % ImageNet-1k top-1 in the paper."""
    model_args = _BASE
    return _create_agent_swin("agent_swin_base", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_swin_base_384(pretrained: bool = False, **kwargs: Any) -> AgentSwin:
    """Agent-Swin-B at 384 pixels: 84.9 % ImageNet-1k top-1 in the paper."""
    model_args = {**_BASE, "img_size": 384}
    return _create_agent_swin("agent_swin_base_384", pretrained, **dict(model_args, **kwargs))
