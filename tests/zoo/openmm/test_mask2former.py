"""Mask2Former as detectron2 saves it."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from visattn.zoo.checkpoint import compare
from visattn.zoo.openmm.convert import convert_state_dict, has_heads
from visattn.zoo.openmm.mask2former import convert_head
from visattn.zoo.registry import register_all


def norm(channels):
    return {"weight": (channels,), "bias": (channels,)}


def linear(inputs, outputs):
    return {"weight": (outputs, inputs), "bias": (outputs,)}


def convolution(inputs, outputs, side=1, bias=True):
    weight = {"weight": (outputs, inputs, side, side)}
    return {**weight, "bias": (outputs,)} if bias else weight


ATTENTION = {
    "in_proj_weight": (768, 256),
    "in_proj_bias": (768,),
    "out_proj.weight": (256, 256),
    "out_proj.bias": (256,),
}


def official_shapes(channels, queries, classes, encoder=6, decoder=9):
    """Names and shapes of detectron2's head, by the modules of Mask2Former's code."""
    parts = {
        # The coarsest map first.
        **{
            f"pixel_decoder.input_proj.{i}.0": convolution(c, 256)
            for i, c in enumerate(channels[:0:-1])
        },
        **{f"pixel_decoder.input_proj.{i}.1": norm(256) for i in range(3)},
        "pixel_decoder.transformer": {"level_embed": (3, 256)},
        "pixel_decoder.adapter_1": convolution(channels[0], 256, bias=False),
        "pixel_decoder.adapter_1.norm": norm(256),
        "pixel_decoder.layer_1": convolution(256, 256, 3, bias=False),
        "pixel_decoder.layer_1.norm": norm(256),
        "pixel_decoder.mask_features": convolution(256, 256),
        "predictor.decoder_norm": norm(256),
        "predictor.query_feat": {"weight": (queries, 256)},
        "predictor.query_embed": {"weight": (queries, 256)},
        "predictor.level_embed": {"weight": (3, 256)},
        "predictor.class_embed": linear(256, classes + 1),
        **{f"predictor.mask_embed.layers.{i}": linear(256, 256) for i in range(3)},
    }
    for i in range(encoder):
        layer = f"pixel_decoder.transformer.encoder.layers.{i}"
        parts |= {
            f"{layer}.self_attn.sampling_offsets": linear(256, 8 * 3 * 4 * 2),
            f"{layer}.self_attn.attention_weights": linear(256, 8 * 3 * 4),
            f"{layer}.self_attn.value_proj": linear(256, 256),
            f"{layer}.self_attn.output_proj": linear(256, 256),
            f"{layer}.linear1": linear(256, 1024),
            f"{layer}.linear2": linear(1024, 256),
            f"{layer}.norm1": norm(256),
            f"{layer}.norm2": norm(256),
        }
    for i in range(decoder):
        parts |= {
            f"predictor.transformer_self_attention_layers.{i}.self_attn": ATTENTION,
            f"predictor.transformer_self_attention_layers.{i}.norm": norm(256),
            f"predictor.transformer_cross_attention_layers.{i}.multihead_attn": ATTENTION,
            f"predictor.transformer_cross_attention_layers.{i}.norm": norm(256),
            f"predictor.transformer_ffn_layers.{i}.linear1": linear(256, 2048),
            f"predictor.transformer_ffn_layers.{i}.linear2": linear(2048, 256),
            f"predictor.transformer_ffn_layers.{i}.norm": norm(256),
        }
    return {
        f"sem_seg_head.{part}.{leaf}": shape
        for part, leaves in parts.items()
        for leaf, shape in leaves.items()
    }


class Holder(nn.Module):
    """A model with a head and nothing below it."""

    def __init__(self, name, head):
        super().__init__()
        self.add_module(name, head)
        self.backbone = nn.Identity()
        self.backbone.convert_state_dict = lambda model, state_dict: state_dict


@pytest.fixture(scope="module")
def panoptic():
    """The head of the recipe for COCO's panoptic segmentation, without memory."""
    register_all("mmdet")
    path = "configs/detection/dinat/mask2former_dinat-large_100e_coco-panoptic.py"
    cfg = Config.fromfile(path).model.panoptic_head
    channels = [192, 384, 768, 1536]
    with torch.device("meta"):
        head = MODELS.build({**cfg, "in_channels": channels, "strides": [4, 8, 16, 32],
                             "test_cfg": {}, "_scope_": "mmdet"})  # fmt: skip
    return Holder("panoptic_head", head), official_shapes(channels, 200, 133)


def test_every_entry_of_the_head_has_its_counterpart(panoptic):
    model, shapes = panoptic
    theirs = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    theirs["criterion.empty_weight"] = torch.empty(134, device="meta")
    assert has_heads(model, theirs)
    report = compare(convert_state_dict(model, theirs), model.state_dict())
    assert report.is_whole, report


def test_layers_keep_their_order():
    parts = {
        "predictor.transformer_cross_attention_layers.2.norm.bias": "norms.0.bias",
        "predictor.transformer_self_attention_layers.2.norm.bias": "norms.1.bias",
        "predictor.transformer_ffn_layers.2.norm.bias": "norms.2.bias",
        "predictor.transformer_cross_attention_layers.2.multihead_attn.in_proj_bias":
            "cross_attn.attn.in_proj_bias",
        "predictor.transformer_ffn_layers.2.linear2.bias": "ffn.layers.1.bias",
    }  # fmt: skip
    converted = convert_head({key: torch.zeros(1) for key in parts}, 80, 53)
    assert list(converted) == [f"transformer_decoder.layers.2.{key}" for key in parts.values()]


def names_of(dataset):
    import mmdet.datasets
    import mmseg.datasets

    module = mmdet.datasets if "Panoptic" in dataset else mmseg.datasets
    names = getattr(module, dataset).METAINFO["classes"]
    return [name.split(",")[0].strip() for name in names]


def ordered(num_things, num_stuff):
    """Where each class of the converted head was before."""
    count = num_things + num_stuff
    bias = torch.arange(count + 1.0)
    converted = convert_head({"predictor.class_embed.bias": bias}, num_things, num_stuff)
    return converted["cls_embed.bias"].long().tolist()


def test_things_of_ade20k_go_first():
    register_all("mmdet")
    register_all("mmseg")
    *order, nothing = ordered(100, 50)
    assert nothing == 150 and sorted(order) == list(range(150))
    before, after = names_of("ADE20KDataset"), names_of("ADE20KPanopticDataset")
    different = {before[i]: name for i, name in zip(order, after, strict=True) if before[i] != name}
    assert different == {
        "windowpane": "window", "bathtub": "tub", "railing": "rail", "streetlight": "street lamp",
        "television receiver": "tv", "apparel": "clothes", "ashcan": "trash can",
        "swimming pool": "pool", "waterfall": "falls",
    }  # fmt: skip


def test_things_of_cityscapes_go_first():
    from visattn.zoo.openmm.cityscapes import CityscapesPanopticDataset

    register_all("mmseg")
    *order, nothing = ordered(8, 11)
    before = names_of("CityscapesDataset")
    expected = list(CityscapesPanopticDataset.METAINFO["classes"])
    assert nothing == 19 and [before[i] for i in order] == expected


@pytest.mark.parametrize("classes", [(80, 53), (100, 0), (8, 0), (150, 0)])
def test_other_classes_stay(classes):
    assert ordered(*classes) == list(range(sum(classes) + 1))
