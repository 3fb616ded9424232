"""Agent PVT

Paper: `Agent Attention: On the Integration of Softmax and Linear Attention`
    - https://arxiv.org/abs/2312.08874 (ECCV 2024)
Original code: https://github.com/LeapLabTHU/Agent-Attention

Pyramid Vision Transformer whose blocks attend to the whole map by way of agents, without spatial
reduction, class token and final norm.

What this implementation does differently:
* one model for classification and dense prediction: any input size, on which it does what the
  authors' dense models do; pixels at the bottom and right that make no whole patch are not seen
* queries, keys and values are of one projection where keys are not reduced
* the names of parameters, and biases in the layout of the kernel

Checkpoints: the authors' files load as released, by `checkpoint_path=FILE`.
"""
# The original states no licence; nothing of its code is in here.

from functools import partial
from typing import Any

import torch
from timm.layers import PatchEmbed, calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn

from ._agent import (
    AgentAttention,
    Size,
    SpatialReductionAttention,
    agent_cfg,
    check_stages,
    convert_biases,
    fit_biases,
    fit_positions,
    hybrid_blocks,
    resize_positions,
    set_map_size,
)
from ._builder import StateDict, build_model, rename, unwrap
from ._pyramid import Pyramid, Stage
from ._registry import register_model

__all__ = ["AgentPVT"]


class PatchPositions(PatchEmbed):
    """Patches, a norm and learned positions; maps NCHW to channels-last.

    On a map of another size the positions are resized, bilinearly.

    Args:
        in_chans: Input channels.
        dim: Channels.
        patch_size: Side of a patch.
        map_size: Rows and columns of patches that the positions are for.
        pos_drop: Dropout of patches with positions.
    """

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
            norm_layer=nn.LayerNorm,
            flatten=False,
            output_fmt="NHWC",
            **dd,
        )
        self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, *map_size, dim, **dd), std=0.02))
        self.pos_drop = nn.Dropout(pos_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return self.pos_drop(x + resize_positions(self.pos_embed, x.shape[1:3], "bilinear"))

    @torch.no_grad()
    def set_map_size(self, size: Size) -> None:
        """Makes the positions a parameter of another map size."""
        self.pos_embed = nn.Parameter(resize_positions(self.pos_embed, size, "bicubic").clone())


class PatchDownsample(PatchPositions):
    """Patches of channels-last maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class AgentPVT(Pyramid):
    """Pyramid Vision Transformer with agent attention (paper, section 4.3).

    Args:
        in_chans: Input channels.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier.
        img_size: Pixels a side that biases and positions are for; any other size works, too.
        depths: Blocks of each stage.
        agent_depths: How many of them, the first, have agents; all by default. The others have
            spatial reduction.
        embed_dims: Channels of each stage.
        head_dim: Width of a head.
        mlp_ratios: Hidden over input channels of the MLPs of each stage.
        num_agents: Agents of each stage, square numbers.
        agent_shapes: Rows and columns of the agents that are pooled in each stage; the squares of
            ``num_agents`` by default. The authors' dense models have (12, 12), (16, 16), (28, 28)
            and (28, 28).
        sr_ratios: Spatial reduction of each stage in blocks without agents.
        agent_sr_ratios: Spatial reduction of each stage in blocks with agents.
        drop_rate: Dropout before the classifier.
        pos_drop_rate: Dropout after positions are added.
        proj_drop_rate: Dropout after projections.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | Size = 224,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        agent_depths: tuple[int, ...] | None = None,
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        head_dim: int = 64,
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        num_agents: tuple[int, ...] = (9, 16, 49, 49),
        agent_shapes: tuple[Size | None, ...] | None = None,
        sr_ratios: tuple[int, ...] = (8, 4, 2, 1),
        agent_sr_ratios: tuple[int, ...] = (1, 1, 1, 1),
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        if agent_depths is None:
            agent_depths = depths
        if agent_shapes is None:
            agent_shapes = (None,) * len(depths)
        check_stages(
            len(depths),
            agent_depths=agent_depths,
            embed_dims=embed_dims,
            mlp_ratios=mlp_ratios,
            num_agents=num_agents,
            agent_shapes=agent_shapes,
            sr_ratios=sr_ratios,
            agent_sr_ratios=agent_sr_ratios,
        )
        for dim in embed_dims:
            if dim % head_dim:
                raise ValueError(
                    f"embed_dims {embed_dims} must be divisible by head_dim {head_dim}"
                )
        sizes = _map_sizes(to_2tuple(img_size), len(depths))
        drop_paths = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            shared = {"proj_drop": proj_drop_rate, **dd}
            heads = dim // head_dim
            blocks = hybrid_blocks(
                dim,
                agent_depths[i],
                drop_paths[i],
                partial(
                    *(AgentAttention, dim, heads, sizes[i], num_agents[i], agent_shapes[i]),
                    sr_ratio=agent_sr_ratios[i],
                    **shared,
                ),
                (partial(SpatialReductionAttention, dim, heads, sr_ratios[i], **shared),),
                mlp_ratio=mlp_ratios[i],
                norm_eps=1e-6,
                **shared,
            )
            if i == 0:
                downsample = nn.Identity()
            else:
                downsample = PatchDownsample(
                    embed_dims[i - 1], dim, 2, sizes[i], pos_drop_rate, **dd
                )
            stages.append(Stage(downsample, blocks))

        super().__init__(
            PatchPositions(in_chans, embed_dims[0], 4, sizes[0], pos_drop_rate, **dd),
            stages,
            nn.Identity(),
            embed_dims,
            [4 * 2**i for i in range(len(depths))],
            in_chans,
            num_classes,
            global_pool,
            drop_rate,
            channels_last=True,
            **dd,
        )

    def set_input_size(self, img_size: int | Size) -> None:
        """Resizes biases and positions for images of another size, as for fine-tuning to it.

        Args:
            img_size: Pixels a side.
        """
        sizes = _map_sizes(to_2tuple(img_size), len(self.stages))
        self.stem.set_map_size(sizes[0])
        for i, (stage, size) in enumerate(zip(self.stages, sizes, strict=True)):
            set_map_size(stage, size)
            if i:
                stage.downsample.set_map_size(size)


def _map_sizes(img_size: Size, count: int) -> list[Size]:
    """Rows and columns of tokens of each stage."""
    return [tuple(max(side // (4 * 2**i), 1) for side in img_size) for i in range(count)]


_cfg = partial(agent_cfg, first_conv="stem.proj")

default_cfgs = generate_default_cfgs(
    {
        "agent_pvt_tiny.in1k": _cfg("13fdf0e0a7c5498c934f"),
        "agent_pvt_small.in1k": _cfg("36b8be9a8863456685a3"),
        "agent_pvt_medium.in1k": _cfg("4d00ecacf18b45f9b88c"),
        "agent_pvt_medium_256.in1k": _cfg(
            "654df734121643b19c52", input_size=(3, 256, 256), pool_size=(8, 8)
        ),
        "agent_pvt_large.in1k": _cfg("040cfe0cfbbe4762ad09"),
    }
)


def _downsample(path: str) -> str:
    stage = int(path) - 1
    return f"stages.{stage}.downsample." if stage else "stem."


_OFFICIAL = (
    (r"^pos_embed(\d)$", lambda match: f"{_downsample(match[1])}pos_embed"),
    (r"^patch_embed(\d)\.", lambda match: _downsample(match[1])),
    (r"^block(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.blocks."),
    (r"\.attn\.sr\.", ".attn.reduction.conv."),
    (r"\.attn\.norm\.", ".attn.reduction.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Maps an official state dict to ours; keeps the names of ours.

    Takes the releases of classification and of dense prediction (prefix `backbone.`). Biases and
    positions of another size are resized: linearly and bicubically.
    """
    converted = convert_biases(rename(unwrap(state_dict), _OFFICIAL))
    # Where keys and values are not reduced, the queries' projection is joined to theirs.
    for key in [key for key in converted if ".attn.kv." in key]:
        if key.partition(".attn.")[0] + ".attn.reduction.conv.weight" not in converted:
            q = converted.pop(key.replace(".kv.", ".q."))
            converted[key.replace(".kv.", ".qkv.")] = torch.cat([q, converted.pop(key)])
    return fit_positions(fit_biases(converted, model), model)


def _create_agent_pvt(variant: str, pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    out_indices = kwargs.pop("out_indices", tuple(range(len(kwargs["depths"]))))
    return build_model(
        AgentPVT,
        variant,
        pretrained,
        checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices},
        **kwargs,
    )


_MEDIUM = {"depths": (3, 4, 18, 3)}


@register_model
def agent_pvt_tiny(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-T: 11.6 M parameters, 78.4 % ImageNet-1k top-1 in the paper."""
    model_args = {"depths": (2, 2, 2, 2)}
    return _create_agent_pvt("agent_pvt_tiny", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_pvt_small(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-S: 20.6 M parameters, 82.2 % ImageNet-1k top-1 in the paper."""
    model_args = {"depths": (3, 4, 6, 3)}
    return _create_agent_pvt("agent_pvt_small", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_pvt_medium(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-M: 35.9 M parameters, 83.4 % ImageNet-1k top-1 in the paper."""
    return _create_agent_pvt("agent_pvt_medium", pretrained, **dict(_MEDIUM, **kwargs))


@register_model
def agent_pvt_medium_256(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-M at 256 pixels: 83.8 % ImageNet-1k top-1 in the paper."""
    model_args = {**_MEDIUM, "img_size": 256}
    return _create_agent_pvt("agent_pvt_medium_256", pretrained, **dict(model_args, **kwargs))


@register_model
def agent_pvt_large(pretrained: bool = False, **kwargs: Any) -> AgentPVT:
    """Agent-PVT-L: 48.7 M parameters, 83.7 % ImageNet-1k top-1 in the paper."""
    model_args = {"depths": (3, 8, 27, 3)}
    return _create_agent_pvt("agent_pvt_large", pretrained, **dict(model_args, **kwargs))
