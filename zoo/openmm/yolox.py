"""YOLOX as Megvii's code names it: the layout of its weights, and of those with ELA."""

from ...backbones._builder import rename
from ..checkpoint import StateDict

# Layers of a cross stage partial block. That of the last stage follows spatial pyramid pooling.
_PARTIAL = r"^(backbone\.stage(?:[1-3]\.1|4\.2)|neck\.(?:top_down|bottom_up)_blocks\.\d)\."
_RENAMED = (
    (r"^backbone\.backbone\.", "backbone."),
    (r"^backbone\.dark(\d)\.", lambda match: f"backbone.stage{int(match[1]) - 1}."),
    (r"^backbone\.lateral_conv0\.", "neck.reduce_layers.0."),
    (r"^backbone\.reduce_conv1\.", "neck.reduce_layers.1."),
    (r"^backbone\.C3_p4\.", "neck.top_down_blocks.0."),
    (r"^backbone\.C3_p3\.", "neck.top_down_blocks.1."),
    (r"^backbone\.bu_conv2\.", "neck.downsamples.0."),
    (r"^backbone\.bu_conv1\.", "neck.downsamples.1."),
    (r"^backbone\.C3_n([34])\.", lambda match: f"neck.bottom_up_blocks.{int(match[1]) - 3}."),
    (r"^backbone\.feat06\.", "neck.attention.0."),
    (r"^backbone\.feat([12])\.", r"neck.attention.\1."),
    (r"^head\.stems\.", "neck.out_convs."),
    (r"^head\.(cls|reg)_convs\.", r"bbox_head.multi_level_\1_convs."),
    (r"^head\.(cls|reg|obj)_preds\.", r"bbox_head.multi_level_conv_\1."),
    (_PARTIAL + r"conv1\.", r"\1.main_conv."),
    (_PARTIAL + r"conv2\.", r"\1.short_conv."),
    (_PARTIAL + r"conv3\.", r"\1.final_conv."),
    (_PARTIAL + r"m\.", r"\1.blocks."),
    (r"\.dconv\.", ".depthwise_conv."),
    (r"\.pconv\.", ".pointwise_conv."),
)
# Attention that the network with ELA makes and never uses.
_UNUSED = ("backbone.feat5.", "backbone.feat10.")


def is_of_megvii(state_dict: StateDict) -> bool:
    """Whether a state dict is of a YOLOX in Megvii's layout."""
    return any(key.startswith("backbone.backbone.dark2.") for key in state_dict)


def convert(state_dict: StateDict) -> StateDict:
    """Maps a YOLOX in Megvii's layout, with ELA or without, to mmdet's.

    Attention that the released network with ELA never uses is left out.
    """
    used = {key: value for key, value in state_dict.items() if not key.startswith(_UNUSED)}
    return rename(used, _RENAMED)
