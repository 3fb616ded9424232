"""Heads of Mask2Former as detectron2 names them, which DiNAT's were released in."""

import re
from collections.abc import Sequence

import torch

from ...backbones._builder import rename
from ..checkpoint import StateDict

PREFIX = "sem_seg_head."
"""What the head's keys begin with."""

_RENAMED = (
    (r"^pixel_decoder\.input_proj\.(\d)\.0\.", r"pixel_decoder.input_convs.\1.conv."),
    (r"^pixel_decoder\.input_proj\.(\d)\.1\.", r"pixel_decoder.input_convs.\1.gn."),
    (r"^pixel_decoder\.transformer\.level_embed$", "pixel_decoder.level_encoding.weight"),
    (r"^pixel_decoder\.transformer\.encoder\.", "pixel_decoder.encoder."),
    (r"(\.encoder\.layers\.\d+)\.norm1\.", r"\1.norms.0."),
    (r"(\.encoder\.layers\.\d+)\.norm2\.", r"\1.norms.1."),
    (r"^pixel_decoder\.adapter_1\.norm\.", "pixel_decoder.lateral_convs.0.gn."),
    (r"^pixel_decoder\.adapter_1\.", "pixel_decoder.lateral_convs.0.conv."),
    (r"^pixel_decoder\.layer_1\.norm\.", "pixel_decoder.output_convs.0.gn."),
    (r"^pixel_decoder\.layer_1\.", "pixel_decoder.output_convs.0.conv."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_feature."),
    (
        r"^predictor\.transformer_cross_attention_layers\.(\d+)\.multihead_attn\.",
        r"transformer_decoder.layers.\1.cross_attn.attn.",
    ),
    (
        r"^predictor\.transformer_self_attention_layers\.(\d+)\.self_attn\.",
        r"transformer_decoder.layers.\1.self_attn.attn.",
    ),
    (
        r"^predictor\.transformer_cross_attention_layers\.(\d+)\.norm\.",
        r"transformer_decoder.layers.\1.norms.0.",
    ),
    (
        r"^predictor\.transformer_self_attention_layers\.(\d+)\.norm\.",
        r"transformer_decoder.layers.\1.norms.1.",
    ),
    (
        r"^predictor\.transformer_ffn_layers\.(\d+)\.norm\.",
        r"transformer_decoder.layers.\1.norms.2.",
    ),
    (r"^predictor\.transformer_ffn_layers\.(\d+)\.", r"transformer_decoder.layers.\1."),
    (r"(layers\.\d+)\.linear1\.", r"\1.ffn.layers.0.0."),
    (r"(layers\.\d+)\.linear2\.", r"\1.ffn.layers.1."),
    (r"^predictor\.decoder_norm\.", "transformer_decoder.post_norm."),
    (r"^predictor\.class_embed\.", "cls_embed."),
    (
        r"^predictor\.mask_embed\.layers\.(\d)\.",
        lambda match: f"mask_embed.{2 * int(match[1])}.",
    ),
    (r"^predictor\.(query_feat|query_embed|level_embed)\.", r"\1."),
)

# Where detectron2 keeps the order of the data set, mmdet has all things before the stuff.
_CITYSCAPES_THINGS = range(11, 19)
_ADE20K_THINGS = (
    7, 8, 10, 12, 14, 15, 18, 19, 20, 22, 23, 24, 27, 30, 31, 32, 33, 35, 36, 37, 38, 39, 41, 42,
    43, 44, 45, 47, 49, 50, 53, 55, 56, 57, 58, 62, 64, 65, 66, 67, 69, 70, 71, 72, 73, 74, 75, 76,
    78, 80, 81, 82, 83, 85, 86, 87, 88, 89, 90, 92, 93, 95, 97, 98, 102, 103, 104, 107, 108, 110,
    111, 112, 115, 116, 118, 119, 120, 121, 123, 124, 125, 126, 127, 129, 130, 132, 133, 134, 135,
    136, 137, 138, 139, 142, 143, 144, 146, 147, 148, 149,
)  # fmt: skip
_THINGS: dict[tuple[int, int], Sequence[int]] = {
    (8, 11): _CITYSCAPES_THINGS,
    (100, 50): _ADE20K_THINGS,
}


def convert_head(state_dict: StateDict, num_things: int, num_stuff: int) -> StateDict:
    """Maps detectron2's state dict of a head to mmdet's.

    Classes of a panoptic head for Cityscapes or ADE20K change places: their things, which are
    between the stuff, go before it.

    Args:
        state_dict: Without the prefix of the head.
        num_things: Classes of the head that are things.
        num_stuff: Classes of the head that are stuff.
    """
    converted = rename(state_dict, _RENAMED)
    things = _THINGS.get((num_things, num_stuff))
    if things is None:
        return converted
    count = num_things + num_stuff
    stuff = [index for index in range(count) if index not in set(things)]
    order = torch.tensor([*things, *stuff, count])
    for key in ("cls_embed.weight", "cls_embed.bias"):
        if len(converted.get(key, ())) == len(order):
            converted[key] = converted[key][order]
    return converted


def is_of_detectron(state_dict: StateDict) -> bool:
    """Whether a state dict is of detectron2's Mask2Former."""
    return any(re.match(rf"{re.escape(PREFIX)}(predictor|pixel_decoder)\.", k) for k in state_dict)
