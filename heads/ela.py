"""Efficient local attention where its paper puts it in detectors (ELA, arXiv 2403.01123).

Only names and figures are the released code's, which has no licence.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.necks import YOLOXPAFPN, DilatedEncoder
from mmengine.registry import MODELS
from torch import nn

from .plugins import ela_layer

__all__ = ["ELADilatedEncoder", "ELAPAFPN"]


@MODELS.register_module()
class ELAPAFPN(YOLOXPAFPN):
    """YOLOX's path aggregation network with an attention layer for each level.

    The layer of a level gates what comes from the backbone, and again each concatenation of two
    maps that is as wide as the level: on the way down before the next finer level is made, and on
    the way up before this level is.

    Args:
        in_channels: Channels of the levels, each twice those of the one before.
        out_channels: Channels of the outputs.
        preset: Variant of ELA; the released code has ``"l"``, the released weights are of ``"t"``.
        attention: Further settings of ``EfficientLocalAttention``.
        **kwargs: Of mmdet's ``YOLOXPAFPN``.

    Raises:
        ValueError: If a level is not twice as wide as the one before.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        preset: str = "l",
        attention: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(list(in_channels), out_channels, **kwargs)
        if any(2 * low != high for low, high in zip(in_channels, in_channels[1:], strict=False)):
            raise ValueError(
                "ELAPAFPN shares a level's attention with concatenations of maps of the level "
                f"before, so in_channels must double from level to level; got {list(in_channels)}"
            )
        self.attention = nn.ModuleList(
            ela_layer(channels, preset, **(attention or {})) for channels in in_channels
        )

    def forward(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Maps (B, C_i, H_i, W_i), the finest first, to maps (B, out_channels, H_i, W_i)."""
        levels = [attend(x) for attend, x in zip(self.attention, inputs, strict=True)]
        finer = self.attention[1:]
        top, reduced = levels.pop(), []
        for reduce, fuse, level, attend in zip(
            self.reduce_layers, self.top_down_blocks, levels[::-1], finer[::-1], strict=True
        ):
            reduced.append(reduce(top))
            top = fuse(attend(torch.cat((self.upsample(reduced[-1]), level), 1)))
        outs = [top]
        for down, fuse, level, attend in zip(
            self.downsamples, self.bottom_up_blocks, reduced[::-1], finer, strict=True
        ):
            outs.append(fuse(attend(torch.cat((down(outs[-1]), level), 1))))
        return tuple(project(x) for project, x in zip(self.out_convs, outs, strict=True))


@MODELS.register_module()
class ELADilatedEncoder(DilatedEncoder):
    """YOLOF's dilated encoder with attention, each time with a residual.

    It gates the input, what the projector gives, and the input and output of each dilated block but
    the last, where one layer serves both.

    Args:
        in_channels: Channels of the last level of the backbone.
        out_channels: Channels of the output.
        block_mid_channels: Channels inside the dilated blocks.
        num_residual_blocks: Dilated blocks.
        block_dilations: Dilation of each.
        preset: Variant of ELA; the released code has ``"t"``.
        attention: Further settings of ``EfficientLocalAttention``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_mid_channels: int,
        num_residual_blocks: int,
        block_dilations: Sequence[int],
        preset: str = "t",
        attention: dict[str, Any] | None = None,
    ):
        super().__init__(
            in_channels, out_channels, block_mid_channels, num_residual_blocks, block_dilations
        )
        settings = {"preset": preset, "residual": True, **(attention or {})}
        self.input_attention = ela_layer(in_channels, **settings)
        self.projector_attention = ela_layer(out_channels, **settings)
        self.block_attention = nn.ModuleList(
            ela_layer(out_channels, **settings) for _ in range(num_residual_blocks - 1)
        )

    def forward(self, feature: Sequence[torch.Tensor]) -> tuple[torch.Tensor]:
        """Maps of a backbone, of which the last is taken, to one map (B, out_channels, H, W)."""
        x = self.lateral_norm(self.lateral_conv(self.input_attention(feature[-1])))
        x = self.projector_attention(self.fpn_norm(self.fpn_conv(x)))
        *attended, last = self.dilated_encoder_blocks
        for attend, block in zip(self.block_attention, attended, strict=True):
            x = attend(block(attend(x)))
        return (last(x),)
