"""Detectors and segmentors as their authors released them."""

import re

import pytest
import torch
from _official import official_state_dict
from mmengine.config import Config
from mmengine.registry import MODELS

from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.openmm.auto import resolve_auto
from visattn.zoo.openmm.convert import convert_state_dict, load_dense_checkpoint
from visattn.zoo.registry import register_all

LAYER_NORMS = {"norm_outputs": "layernorm2d"}
SHALLOW = {"depths": (1, 1, 1, 1)}
BACKBONES = {
    "biformer": {
        "model_name": "biformer_tiny",
        **SHALLOW,
        "embed_dims": (32, 64, 96, 128),
        "n_win": 2,
        **LAYER_NORMS,
    },
    "nat": {"model_name": "nat_base", **SHALLOW, "embed_dim": 32, **LAYER_NORMS},
    "dinat_s": {"model_name": "dinat_s_tiny", **SHALLOW, "embed_dim": 32, **LAYER_NORMS},
    "agent_swin": {
        "model_name": "agent_swin_tiny",
        "depths": (1, 1, 3, 1),
        "agent_depths": (1, 1, 1, 0),
        "embed_dim": 32,
        **LAYER_NORMS,
    },
    "agent_pvt": {"model_name": "agent_pvt_tiny", **SHALLOW},
}


CONV_HEAD = {
    "type": "Shared4Conv1FCBBoxHead",
    "conv_out_channels": 32,
    "norm_cfg": {"type": "SyncBN"},
}
ANCHORS = {
    "type": "AnchorGenerator",
    "octave_base_scale": 4,
    "scales_per_octave": 3,
    "ratios": [0.5, 1.0, 2.0],
    "strides": [4, 8, 16, 32],
}
CODER = {"type": "DeltaXYWHBBoxCoder"}


def build(family, head):
    """A small model of ours, filled at random, batch statistics too."""
    mmdet = head in ("mask-rcnn", "cascade", "retinanet")
    task, scope = ("detection", "mmdet") if mmdet else ("segmentation", "mmseg")
    register_all(scope)
    base = "mask-rcnn_fpn_micro" if mmdet else "upernet_micro"
    cfg = Config.fromfile(f"configs/{task}/_base_/models/{base}.py")
    model = cfg.model
    model.backbone = {"type": "TimmBackbone", **BACKBONES[family]}
    if head == "cascade":
        box = {**model.roi_head.bbox_head.to_dict(), **CONV_HEAD}
        mask = model.roi_head.mask_head.to_dict()
        model.type = "CascadeRCNN"
        model.roi_head |= {
            "type": "CascadeRoIHead",
            "num_stages": 3,
            "stage_loss_weights": [1, 0.5, 0.25],
            "bbox_head": [dict(box) for _ in range(3)],
            "mask_head": [dict(mask) for _ in range(3)],
        }
        model.train_cfg.rcnn = [model.train_cfg.rcnn.to_dict() for _ in range(3)]
    elif head == "retinanet":
        model.type = "RetinaNet"
        for key in ("rpn_head", "roi_head", "train_cfg", "test_cfg"):
            del model[key]
        model.bbox_head = {
            "type": "RetinaHead",
            "num_classes": 10,
            "in_channels": "auto",
            "feat_channels": 32,
            "stacked_convs": 2,
            "anchor_generator": ANCHORS,
            "bbox_coder": CODER,
        }
        model.test_cfg = {
            "nms_pre": 100,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.5},
            "max_per_img": 10,
        }
    elif head == "semantic-fpn":
        del model["auxiliary_head"]
        model.neck = {"type": "FPN", "in_channels": "auto", "out_channels": 32, "num_outs": 4}
        model.decode_head |= {
            "type": "FPNHead",
            "feature_strides": [4, 8, 16, 32],
            "in_index": [0, 1, 2, 3],
        }
        del model.decode_head["pool_scales"]
    model["_scope_"] = scope
    model = MODELS.build(resolve_auto(cfg).model).eval()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn_like(value) * 0.1 + (name.endswith("running_var")))
    return model


CASES = [
    ("biformer", "mask-rcnn"),
    ("biformer", "upernet"),
    ("nat", "mask-rcnn"),
    ("nat", "cascade"),
    ("dinat_s", "upernet"),
    ("agent_swin", "cascade"),
    ("agent_swin", "upernet"),
    ("agent_pvt", "retinanet"),
    ("agent_pvt", "semantic-fpn"),
]


def features(model):
    """Outputs of heads that need nothing but images, and of necks below the others."""
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.extract_feat(x) if hasattr(model, "roi_head") else model(x, mode="tensor")
    flat = []

    def collect(value):
        if isinstance(value, torch.Tensor):
            flat.append(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)

    collect(outputs)
    return flat


@pytest.mark.parametrize(("family", "head"), CASES)
def test_loads_what_the_authors_saved(family, head, tmp_path):
    source, target = build(family, head), build(family, head)
    path = tmp_path / "theirs.pth"
    meta = {"CLASSES": ("a", "b"), "mmdet_version": "2.25.3", "epoch": 12}
    torch.save({"meta": meta, "state_dict": official_state_dict(source, family)}, path)
    report = load_dense_checkpoint(target, path)
    assert report.is_whole and len(report.matched) == len(source.state_dict())
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name
    for actual, expected in zip(features(target), features(source), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_keeps_ours(prefix):
    model = build("nat", "mask-rcnn")
    ours = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    assert convert_state_dict(model, ours).keys() == model.state_dict().keys()


@pytest.fixture(scope="module")
def theirs():
    model = build("nat", "mask-rcnn")
    return model, official_state_dict(model, "nat")


def refused(theirs, tmp_path, message):
    model, state_dict = theirs
    torch.save({"meta": {}, "state_dict": state_dict}, tmp_path / "theirs.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_dense_checkpoint(model, tmp_path / "theirs.pth")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    "key",
    ["backbone.levels.0.blocks.0.attn.qkv.weight", "backbone.norm2.bias", "rpn_head.rpn_cls.bias"],
)
def test_a_missing_entry_is_named(theirs, tmp_path, key):
    model, state_dict = theirs
    rest = {name: value for name, value in state_dict.items() if name != key}
    leaf = key.removeprefix("backbone.").removeprefix("levels.0.").replace("norm2", "norms.2")
    refused((model, rest), tmp_path, rf"1 missing, 0 unexpected(.|\n)*{re.escape(leaf)}")


def test_an_unknown_entry_is_named(theirs, tmp_path):
    model, state_dict = theirs
    more = {**state_dict, "backbone.norm4.weight": torch.zeros(3), "neck.extra": torch.zeros(1)}
    refused((model, more), tmp_path, r"2 unexpected(.|\n)*backbone.*norm4.*neck\.extra")


def test_shuffled_values_are_refused(theirs, tmp_path):
    model, state_dict = theirs
    keys = list(state_dict)
    shuffled = dict(zip(keys, [*list(state_dict.values())[1:], state_dict[keys[0]]], strict=True))
    refused((model, shuffled), tmp_path, "reshaped: backbone")


def test_norms_of_outputs_that_the_model_lacks_are_refused(theirs, tmp_path):
    _, state_dict = theirs
    backbone = {**BACKBONES["nat"], "norm_outputs": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "nat", backbone)
        model = build("nat", "mask-rcnn")
    refused((model, state_dict), tmp_path, r"8 unexpected(.|\n)*norms\.0\.weight")


MASK2FORMER = {
    "pixel_decoder.encoder.layers.2.self_attn.value_proj.weight":
        "pixel_decoder.encoder.layers.2.attentions.0.value_proj.weight",
    "pixel_decoder.encoder.layers.2.ffn.layers.0.0.bias":
        "pixel_decoder.encoder.layers.2.ffns.0.layers.0.0.bias",
    "transformer_decoder.layers.8.cross_attn.attn.in_proj_weight":
        "transformer_decoder.layers.8.attentions.0.attn.in_proj_weight",
    "transformer_decoder.layers.8.self_attn.attn.in_proj_weight":
        "transformer_decoder.layers.8.attentions.1.attn.in_proj_weight",
    "transformer_decoder.layers.8.ffn.layers.1.weight":
        "transformer_decoder.layers.8.ffns.0.layers.1.weight",
    "transformer_decoder.layers.8.norms.0.weight": "transformer_decoder.layers.8.norms.0.weight",
    "query_feat.weight": "query_feat.weight",
}  # fmt: skip


@pytest.mark.parametrize("head", ["panoptic_head", "decode_head"])
def test_layers_of_transformers_have_the_names_of_mmdet_3(theirs, head):
    old = {f"{head}.{key}": torch.zeros(1) for key in MASK2FORMER.values()}
    converted = convert_state_dict(theirs[0], old)
    assert list(converted) == [f"{head}.{key}" for key in MASK2FORMER]
