"""Attention as plugins of OpenMMLab's networks, such as ``ResNet(plugins=[...])`` of mmdet, mmseg.

Every plugin takes and returns maps (B, C, H, W) of any size, C being the ``in_channels`` that the
network gives it::

    plugins=[
        dict(
            cfg=dict(type="NeighborhoodAttentionPlugin", num_heads=8, kernel_size=7),
            stages=(False, False, True, True),
            position="after_conv3",
        )
    ]
"""

from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import nn

from ..backbones._agent import AgentAttention
from ..backbones.biformer import BiLevelRoutingAttention
from ..backbones.ela import PRESETS, EfficientLocalAttention
from ..backbones.nat import NeighborhoodAttention

__all__ = [
    "AgentAttentionPlugin",
    "AttentionPlugin",
    "BiLevelRoutingAttentionPlugin",
    "ELAPlugin",
    "NeighborhoodAttentionPlugin",
    "ela_layer",
]


def ela_layer(channels: int, preset: str = "l", **kwargs: Any) -> EfficientLocalAttention:
    """Efficient local attention in one of its variants.

    Args:
        channels: Channels.
        preset: Variant: ``"t"``, ``"b"``, ``"s"`` or ``"l"``.
        **kwargs: Of ``EfficientLocalAttention``, instead of the variant's.

    Raises:
        ValueError: If there is no such variant, or it does not fit the channels.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}; got {preset!r}")
    settings = {**PRESETS[preset], **kwargs}
    if "groups" in kwargs:
        settings.pop("group_width")
    return EfficientLocalAttention(channels, **settings)


@MODELS.register_module()
class ELAPlugin(nn.Module):
    """Efficient local attention (ELA): a gate of rows times a gate of columns.

    Args:
        in_channels: Channels.
        preset: Variant: ``"t"``, ``"b"``, ``"s"`` or ``"l"``.
        residual: Whether the input is added, as in the released segmentation network.
        **kwargs: Further settings of ``visattn.backbones.ela.EfficientLocalAttention``.
    """

    _abbr_ = "ela"

    def __init__(self, in_channels: int, preset: str = "l", residual: bool = True, **kwargs: Any):
        super().__init__()
        self.layer = ela_layer(in_channels, preset, residual=residual, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class AttentionPlugin(nn.Module):
    """Attention that starts as nothing: ``x + scale * attention(norm(x))`` with a scale of zero.

    So it goes into a pretrained network without disturbing it.

    Args:
        in_channels: Channels.
        num_heads: Heads; by default of 32 channels each.
        **kwargs: Of the attention; those it does not get are ``defaults``.
    """

    _abbr_ = "attention"
    attention: ClassVar[type[nn.Module]]
    defaults: ClassVar[dict[str, Any]]

    def __init__(self, in_channels: int, num_heads: int | None = None, **kwargs: Any):
        super().__init__()
        self.norm = LayerNorm2d(in_channels)
        num_heads = max(in_channels // 32, 1) if num_heads is None else num_heads
        self.attn = self.attention(in_channels, num_heads, **{**self.defaults, **kwargs})
        self.scale = nn.Parameter(torch.zeros(in_channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = self.attn(self.norm(x).permute(0, 2, 3, 1))
        return x + self.scale * attended.permute(0, 3, 1, 2)


@MODELS.register_module()
class NeighborhoodAttentionPlugin(AttentionPlugin):
    """Neighborhood attention (NAT); ``kernel_size`` and ``dilation`` are as there.

    Windows are as large as fits in maps that are smaller.
    """

    _abbr_ = "neighborhood_attention"
    attention = NeighborhoodAttention
    defaults: ClassVar = {"pad_mode": "clip"}


@MODELS.register_module()
class BiLevelRoutingAttentionPlugin(AttentionPlugin):
    """Bi-level routing attention (BiFormer); ``n_win``, ``topk``, ``side_dwconv`` are as there.

    Padding takes no part in maps that ``n_win`` does not divide.
    """

    _abbr_ = "routing_attention"
    attention = BiLevelRoutingAttention
    defaults: ClassVar = {"pad_mode": "mask"}


@MODELS.register_module()
class AgentAttentionPlugin(AttentionPlugin):
    """Agent attention; ``num_agents`` is as there, and biases are for a map of ``map_size``."""

    _abbr_ = "agent_attention"
    attention = AgentAttention
    defaults: ClassVar = {"map_size": 14}
