"""Checkpoints of detectors and segmentors in the layouts that their authors released.

Those are of mmdet 2 and mmseg 0: keys of the backbone, behind ``backbone.``, are the authors' own;
keys of necks and heads are OpenMMLab's, and most of them have not changed since. Mask2Former with
DiNAT is of detectron2, YOLOX with ELA of Megvii's YOLOX.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...backbones._builder import rename
from ..checkpoint import LoadReport, StateDict, load_checkpoint, read_checkpoint
from ..training.checkpointing import MMENGINE_TYPES
from . import mask2former, yolox

# What mmdet 3 renamed when it wrote the layers of transformers anew; in mmseg the head has the same
# layers under ``decode_head``.
_RENAMED = (
    (r"(\.pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(\.pixel_decoder\.encoder\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
    (r"(\.transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(\.transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(\.transformer_decoder\.layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)


_HEADS = ("bbox_head", "rpn_head", "roi_head", "panoptic_head", "decode_head")


def is_dense(model: nn.Module) -> bool:
    """Whether a model is a detector or segmentor: a backbone with heads of mmdet or mmseg on it."""
    return hasattr(model, "backbone") and any(hasattr(model, name) for name in _HEADS)


def has_heads(model: nn.Module, state_dict: StateDict) -> bool:
    """Whether a state dict has more of a detector or segmentor than its backbone."""
    if yolox.is_of_megvii(state_dict):
        return True
    others = {name for name, _ in model.named_children()} - {"backbone", "data_preprocessor"}
    others.add(mask2former.PREFIX.rstrip("."))
    return any(key.removeprefix("module.").partition(".")[0] in others for key in state_dict)


def convert_state_dict(model: nn.Module, state_dict: StateDict) -> StateDict:
    """Maps the state dict of an authors' detector or segmentor to ours; returns ours unchanged.

    Args:
        model: Detector or segmentor.
        state_dict: Of the whole model, with or without the prefix ``module.``.

    Returns:
        State dict with our names. What the model lacks keeps a name, for a report to show.
    """
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    if yolox.is_of_megvii(state_dict):
        return yolox.convert(state_dict)
    backbone, rest = {}, {}
    for key, value in state_dict.items():
        bare = key.removeprefix("backbone.")
        (rest if bare == key else backbone)[bare] = value
    if hasattr(model.backbone, "convert_state_dict"):
        backbone = model.backbone.convert_state_dict(model.backbone, backbone)
    if mask2former.is_of_detectron(rest):
        rest = _convert_mask2former(model, rest)
    return {
        **{f"backbone.{key}": value for key, value in backbone.items()},
        **rename(rest, _RENAMED),
    }


def _convert_mask2former(model: nn.Module, state_dict: StateDict) -> StateDict:
    """Names of mmdet, or of mmseg which has the same layers, for those of detectron2."""
    name = "panoptic_head" if hasattr(model, "panoptic_head") else "decode_head"
    head = getattr(model, name, None)
    classes = (getattr(head, f"num_{kind}_classes", 0) for kind in ("things", "stuff"))
    theirs = {
        key.removeprefix(mask2former.PREFIX): value
        for key, value in state_dict.items()
        if key.startswith(mask2former.PREFIX)
    }
    # Weights of the loss, which are not learned.
    others = {
        key: value
        for key, value in state_dict.items()
        if not key.startswith((mask2former.PREFIX, "criterion."))
    }
    converted = mask2former.convert_head(theirs, *classes)
    return {**others, **{f"{name}.{key}": value for key, value in converted.items()}}


def load_dense_checkpoint(
    model: nn.Module, path: str | Path, strict: bool = True, ignore: Sequence[str] = ()
) -> LoadReport:
    """Loads a detector or segmentor, in the authors' layout or ours, into a model.

    Args:
        model: Detector or segmentor, changed in place; unchanged if this raises.
        path: ``.pth`` or ``.safetensors`` file.
        strict: Whether to raise unless every entry matches.
        ignore: Prefixes of names that need not match, such as ``["roi_head."]``.

    Returns:
        What matched and what did not.

    Raises:
        CheckpointError: If the file cannot be read or, where ``strict``, does not fit the model.
    """
    with torch.serialization.safe_globals(MMENGINE_TYPES):
        return load_checkpoint(model, path, strict, ignore, convert=convert_state_dict)


def read_dataset_meta(path: str | Path) -> dict[str, Any]:
    """The names of classes, and the palette, that a checkpoint was saved with.

    Returns:
        ``{"classes": ..., "palette": ...}`` as far as the file has them; lists of mmdet 2 and
        mmseg 0 too.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    with torch.serialization.safe_globals(MMENGINE_TYPES):
        meta = read_checkpoint(path).get("meta")
    if not isinstance(meta, dict):
        return {}
    found = {**meta, **(meta.get("dataset_meta") or {})}
    return {
        key.lower(): found[key]
        for key in ("CLASSES", "PALETTE", "classes", "palette", "thing_classes", "stuff_classes")
        if found.get(key) is not None
    }
