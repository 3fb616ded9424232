"""Agent CSWin

Paper: `Agent Attention: On the Integration of Softmax and Linear Attention`
    - https://arxiv.org/abs/2312.08874 (ECCV 2024)
Original code: https://github.com/LeapLabTHU/Agent-Attention

CSWin Transformer whose first two stages attend to the whole map by way of agents; the others attend
within stripes, as CSWin does.

What this implementation does differently:
* any input size: a map that stripes do not divide ends in a stripe that is less wide, and nothing
  attends beyond the border; a stage of one stripe at the size it is made for attends to the whole
  map at any size
* projections are of the attention, not of the block, as in the other hosts
* the names of parameters, and biases in the layout of the kernel

Checkpoints: the authors' files load as released, by `checkpoint_path=FILE`. Their figures are of
the averaged weights, `state_dict_ema`, which are taken where a file has them.
"""
# The original states no licence; nothing of its code is in here.

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, to_2tuple
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
from ._builder import StateDict, build_model, rename, unwrap
from ._pyramid import Pyramid, Stage
from ._registry import register_model
from .biformer import LocalEnhancement
from .nat import ConvDownsample

__all__ = ["AgentCSWin", "CrossShapedAttention", "StripeConv"]


class StripeConv(LocalEnhancement):
    """Depthwise 3x3 convolution of a channels-last map within stripes, each zero-padded.

    Args:
        dim: Channels.
        split_size: Tokens that stripes are wide; None for one that is the map.
        axis: 1 for stripes of rows, 2 for stripes of columns.
    """

    def __init__(self, dim: int, split_size: int | None = None, axis: int = 2, **dd: Any):
        super().__init__(dim, 3, **dd)
        self.split_size = split_size
        self.axis = axis

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        split, axis = self.split_size, self.axis
        if split is None:
            return super().forward(x, residual)
        # One line of zeros between stripes, which each of them has for its border.
        length = x.shape[axis]
        place = torch.arange(length + (length - 1) // split, device=x.device)
        stripe, line = place // (split + 1), place % (split + 1)
        source = torch.where(line < split, stripe * split + line, length)
        x = F.pad(x, (0, 0, 0, 0, 0, 1) if axis == 1 else (0, 0, 0, 1))
        x = super().forward(x.index_select(axis, source))
        lines = torch.arange(length, device=x.device)
        x = x.index_select(axis, lines + lines // split)
        return x if residual is None else residual + x


class CrossShapedAttention(nn.Module):
    """Attention within vertical stripes by half of the heads, within horizontal ones by the rest.

    Takes and returns channels-last maps (B, H, W, C) of any size (CSWin, section 3.2).

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of ``dim``, even unless ``split_size`` is None.
        split_size: Tokens that stripes are wide; None for the whole map, which all heads attend to.
        proj_drop: Dropout after the projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        split_size: int | None,
        proj_drop: float = 0.0,
        **dd: Any,
    ):
        super().__init__()
        axes = (2,) if split_size is None else (2, 1)
        branches = len(axes)
        if dim % num_heads or num_heads % branches:
            raise ValueError(
                f"dim {dim} must be divisible by num_heads {num_heads}, and these by the "
                f"{branches} directions of stripes"
            )
        self.num_heads = num_heads
        self.split_size = split_size
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.lepe = nn.ModuleList(
            StripeConv(dim // branches, split_size, axis, **dd) for axis in axes
        )
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        branches = len(self.lepe)
        qkv = self.qkv(x).unflatten(-1, (3 * branches, self.num_heads // branches, -1))
        # Of each branch (B, H, W, heads, dim); values once more, to be convolved.
        parts = unpack(qkv, 3, again=tuple(range(2 * branches, 3 * branches)))
        stripes = (height, self.split_size), (self.split_size, width)
        out = []
        for i, lepe in enumerate(self.lepe):
            q, k, v, again = parts[i::branches]
            if self.split_size is None:
                attended = self._whole(q, k, v)
            else:
                attended = window_attention(q, k, v, stripes[i])
            out.append(lepe(again.flatten(3), attended.flatten(3)))
        return self.proj_drop(self.proj(torch.cat(out, -1)))

    def _whole(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        size = q.shape[1:3]
        q, k, v = (y.flatten(1, 2).transpose(1, 2) for y in (q, k, v))  # (B, heads, N, dim)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(1, size)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, split_size={self.split_size}"


class ConvStem(nn.Module):
    """7x7 convolution of stride 4 and a norm; NCHW images to channels-last maps."""

    def __init__(self, in_chans: int, dim: int, **dd: Any):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 7, stride=4, padding=2, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class AgentCSWin(Pyramid):
    """CSWin Transformer with agent attention in the first stages (paper, section 4.3).

    Args:
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier.
        img_size: Pixels a side that the biases are for; any other size works, too.
        depths: Blocks of each stage.
        agent_depths: How many of them, the first, have agents.
        embed_dim: Channels of the first stage; they double from stage to stage.
        num_heads: Heads of each stage.
        num_agents: Agents of each stage, square numbers.
        agent_shapes: Rows and columns of the agents that are pooled in each stage; the squares of
            ``num_agents`` by default.
        split_sizes: Tokens that stripes are wide in each stage; a stage whose map, of an image of
            ``img_size``, is no larger attends to the whole map. By default 1, 2 and, in the other
            stages, a 32nd of the longer side of ``img_size``.
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
        depths: tuple[int, ...] = (2, 4, 18, 1),
        agent_depths: tuple[int, ...] = (2, 4, 0, 0),
        embed_dim: int = 64,
        num_heads: tuple[int, ...] = (2, 4, 8, 16),
        num_agents: tuple[int, ...] = (9, 16, 49, 49),
        agent_shapes: tuple[Size | None, ...] | None = None,
        split_sizes: tuple[int, ...] | None = None,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        img_size = to_2tuple(img_size)
        if agent_shapes is None:
            agent_shapes = (None,) * len(depths)
        if split_sizes is None:
            widest = -(-max(img_size) // 32)
            split_sizes = (1, 2, *[widest] * len(depths))[: len(depths)]
        check_stages(
            len(depths),
            agent_depths=agent_depths,
            num_heads=num_heads,
            num_agents=num_agents,
            agent_shapes=agent_shapes,
            split_sizes=split_sizes,
        )
        dims = [embed_dim * 2**i for i in range(len(depths))]
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, map_size) in enumerate(
            zip(dims, _map_sizes(img_size, len(depths)), strict=True)
        ):
            shared = {"proj_drop": proj_drop_rate, **dd}
            split = split_sizes[i] if split_sizes[i] < max(map_size) else None
            blocks = hybrid_blocks(
                dim,
                agent_depths[i],
                drop_paths[i],
                partial(
                    *(AgentAttention, dim, num_heads[i], map_size, num_agents[i], agent_shapes[i]),
                    **shared,
                ),
                (partial(CrossShapedAttention, dim, num_heads[i], split, **shared),),
                mlp_ratio=mlp_ratio,
                **shared,
            )
            downsample = ConvDownsample(dim // 2, dim, bias=True, **dd) if i else nn.Identity()
            stages.append(Stage(downsample, blocks))

        super().__init__(
            ConvStem(in_chans, embed_dim, **dd),
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

    def set_input_size(self, img_size: int | Size) -> None:
        """Resizes the biases of agents for images of another size, as for fine-tuning to it.

        Stripes are as wide as before: choose another ``split_sizes`` when building the model.

        Args:
            img_size: Pixels a side.
        """
        sizes = _map_sizes(to_2tuple(img_size), len(self.stages))
        for stage, size in zip(self.stages, sizes, strict=True):
            set_map_size(stage, size)


def _map_sizes(img_size: Size, count: int) -> list[Size]:
    """Rows and columns of tokens of each stage."""
    sizes = [tuple((side + 1) // 4 for side in img_size)]
    while len(sizes) < count:
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


_cfg = agent_cfg

default_cfgs = generate_default_cfgs(
    {
        "agent_cswin_tiny.in1k": _cfg("8c562a74441e46d5902b"),
        "agent_cswin_small.in1k": _cfg("30eb8af675bc4b7a8747"),
        "agent_cswin_base.in1k": _cfg("c8035b0839b2410c8c9f"),
        "agent_cswin_base_384.in1k": _cfg(
            "1239be0df44b47719432", input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0
        ),
    }
)


_OFFICIAL = (
    (r"^stage1_conv_embed\.0\.", "stem.conv."),
    (r"^stage1_conv_embed\.2\.", "stem.norm."),
    (r"^merge(\d)\.conv\.", r"stages.\1.downsample.reduction."),
    (r"^merge(\d)\.norm\.", r"stages.\1.downsample.norm."),
    (r"^stage(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
    (r"(\.blocks\.\d+)\.(qkv|proj)\.", r"\1.attn.\2."),
    (r"\.attns\.(\d)\.get_v\.", r".attn.lepe.\1."),
    (r"\.attns\.0\.", ".attn."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official state dict to ours; keeps the names of ours.

    Averaged weights come first. Biases of another size are resized linearly.
    """
    converted = convert_biases(rename(unwrap(state_dict), _OFFICIAL))
    # The depthwise convolution of agent attention has the name of that of stripes.
    agents = {key.partition(".key_bias.")[0] for key in converted if ".key_bias." in key}
    converted = {_of_agents(key, agents): value for key, value in converted.items()}
    return fit_biases(converted, model)


def _of_agents(key: str, agents: set[str]) -> str:
    attention, _, leaf = key.partition(".lepe.0.")
    return f"{attention}.dwc.{leaf}" if leaf and attention in agents else key


def _create_agent_cswin(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
    return build_model(
        AgentCSWin,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_TINY = {"depths": (2, 4, 18, 1), "agent_depths": (2, 4, 0, 0)}
_SMALL = {"depths": (3, 6, 29, 2), "agent_depths": (3, 6, 0, 0)}
_BASE = {**_SMALL, "embed_dim": 96, "num_heads": (4, 8, 16, 32)}


@register_model
def agent_cswin_tiny(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-T: 20.5 M parameters, 83.1 % ImageNet-1k top-1 in the paper."""
    return _create_agent_cswin("agent_cswin_tiny", pretrained, **dict(_TINY, **kwargs))


@register_model
def agent_cswin_small(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-S: 32.8 M parameters, 83.9 % ImageNet-1k top-1 in the paper."""
    return _create_agent_cswin("agent_cswin_small", pretrained, **dict(_SMALL, **kwargs))


@register_model
def agent_cswin_base(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-B: 73.2 M parameters, 84.7 % ImageNet-1k top-1 in the paper."""
    return _create_agent_cswin("agent_cswin_base", pretrained, **dict(_BASE, **kwargs))


@register_model
def agent_cswin_base_384(pretrained: bool = False, **kwargs: Any) -> AgentCSWin:
    """Agent-CSWin-B at 384 pixels: 85.8 % ImageNet-1k top-1 in the paper."""
    model_args = {**_BASE, "img_size": 384}
    return _create_agent_cswin("agent_cswin_base_384", pretrained, **dict(model_args, **kwargs))
