"""timm models as backbones of OpenMMLab, and channels taken from them."""

import pytest
import timm
import torch
from mmengine.config import Config

from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.errors import ConfigError
from visattn.zoo.openmm.auto import resolve_auto
from visattn.zoo.openmm.backbone import TimmBackbone
from visattn.zoo.registry import register_all

SMALL = {
    "model_name": "biformer_tiny",
    "depths": (1, 1, 1, 1),
    "embed_dims": (32, 64, 96, 128),
    "n_win": 2,
}


def images(height=64, width=96):
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize("indices", [(0, 1, 2, 3), (1, 3)])
def test_states_what_it_returns(indices):
    backbone = TimmBackbone(**SMALL, out_indices=indices)
    features = backbone(images())
    assert backbone.out_channels == tuple(f.shape[1] for f in features)
    assert backbone.out_strides == tuple(64 // f.shape[2] for f in features)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_takes_timm_models_of_any_layout(name):
    kwargs = {"img_size": (64, 96)} if "swin" in name else {}
    backbone = TimmBackbone(name, out_indices=(1, 2), **kwargs).eval()
    assert [f.shape[1] for f in backbone(images())] == list(backbone.out_channels)


def test_norms_are_on_the_outputs_only():
    backbone = TimmBackbone(**SMALL, norm_outputs="layernorm2d").eval()
    for actual, plain in zip(backbone(images()), backbone.model(images()), strict=True):
        torch.testing.assert_close(actual.mean(1), torch.zeros_like(actual.mean(1)), atol=1e-5,
                                   rtol=0)  # fmt: skip
        assert plain.mean(1).abs().max() > 1e-3


def test_norms_on_outputs_take_arguments():
    backbone = TimmBackbone(**SMALL, norm_outputs={"type": "layernorm2d", "eps": 1e-3})
    assert {norm.eps for norm in backbone.norms} == {1e-3}


def test_frozen_stages_do_not_train_and_keep_their_statistics():
    backbone = TimmBackbone(**SMALL, frozen_stages=1).train()
    before = backbone.model.model.stem.norm1.running_mean.clone()
    sum(f.sum() for f in backbone(images())).backward()
    trained = {key for key, p in backbone.named_parameters() if p.grad is not None}
    assert trained == {
        key for key, _ in backbone.named_parameters()
        if not key.startswith(("model.model.stem", "model.model.stages.0"))
    }  # fmt: skip
    torch.testing.assert_close(backbone.model.model.stem.norm1.running_mean, before)


def test_frozen_stem_alone():
    backbone = TimmBackbone(**SMALL, frozen_stages=0)
    frozen = {key for key, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {
        key for key, _ in backbone.named_parameters() if key.startswith("model.model.stem")
    }


def test_norm_eval_keeps_statistics_but_trains_weights():
    backbone = TimmBackbone(**SMALL, norm_eval=True).train()
    norm = backbone.model.model.stages[2].downsample.norm
    before = norm.running_mean.clone()
    sum(f.square().sum() for f in backbone(images())).backward()
    torch.testing.assert_close(norm.running_mean, before)
    assert norm.weight.grad.abs().sum() > 0


def test_momentum_of_batch_norms():
    backbone = TimmBackbone(**SMALL, bn_momentum=0.25)
    norm = backbone.model.model.stem.norm1
    x = images()
    mean = backbone.model.model.stem.conv1(x).mean((0, 2, 3))
    backbone.train()(x)
    torch.testing.assert_close(norm.running_mean, 0.25 * mean)


def test_checkpointing_changes_nothing():
    plain = TimmBackbone(**SMALL)
    recomputed = TimmBackbone(**SMALL, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    x = images()
    for backbone in (plain, recomputed):
        sum(f.square().sum() for f in backbone(x)).backward()
    for p, q in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def official(golden, dense):
    state_dict = dict(golden("biformer_tiny").state_dict)
    if dense:
        state_dict = {f"backbone.{k}": v for k, v in state_dict.items()
                      if not k.startswith(("norm.", "head."))}  # fmt: skip
        for i, channels in enumerate((64, 128, 256, 512)):
            state_dict[f"backbone.extra_norms.{i}.weight"] = torch.full((channels,), i + 2.0)
            state_dict[f"backbone.extra_norms.{i}.bias"] = torch.zeros(channels)
    return state_dict


def test_loads_the_authors_classifier(golden, tmp_path):
    torch.save({"model": official(golden, dense=False)}, tmp_path / "official.pth")
    backbone = TimmBackbone(
        "biformer_tiny", checkpoint=str(tmp_path / "official.pth"), norm_outputs="layernorm2d"
    )
    backbone.init_weights()
    classifier = timm.create_model("biformer_tiny", checkpoint_path=tmp_path / "official.pth")
    x = images()
    expected = classifier.eval().forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(backbone.eval().model(x), expected)


def test_loads_the_authors_dense_layout(golden, tmp_path):
    torch.save({"state_dict": official(golden, dense=True)}, tmp_path / "dense.pth")
    backbone = TimmBackbone(
        "biformer_tiny",
        out_indices=(1, 3),
        checkpoint=str(tmp_path / "dense.pth"),
        norm_outputs="layernorm2d",
    )
    backbone.init_weights()
    assert [norm.weight[0].item() for norm in backbone.norms] == [3.0, 5.0]


def test_dense_norms_are_not_dropped_silently(golden, tmp_path):
    torch.save({"state_dict": official(golden, dense=True)}, tmp_path / "dense.pth")
    backbone = TimmBackbone("biformer_tiny", checkpoint=str(tmp_path / "dense.pth"))
    with pytest.raises(CheckpointError, match="unexpected"):
        backbone.init_weights()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"model_name": "biformer_tiy"}, "did you mean 'biformer_tiny'"),
        ({"out_indices": (0, 9)}, "out_indices="),
        ({"frozen_stages": 9}, "frozen_stages is 9"),
    ],
)
def test_mistakes_are_named(bad, message):
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(**{**SMALL, **bad})


def config(**parts):
    return Config({"model": {"backbone": {"type": "TimmBackbone", **SMALL}, **parts}})


def test_neck_takes_all_levels_and_heads_those_of_the_neck():
    cfg = config(
        neck={"in_channels": "auto", "out_channels": 24, "num_outs": 5},
        rpn_head={"in_channels": "auto"},
        roi_head={"bbox_head": [{"in_channels": "auto"}]},
        decode_head={"in_channels": "auto", "in_index": [0, 4]},
    )
    model = resolve_auto(cfg).model
    assert model.neck.in_channels == [32, 64, 96, 128]
    assert model.rpn_head.in_channels == 24
    assert model.roi_head.bbox_head[0].in_channels == 24
    assert model.decode_head.in_channels == [24, 24]


def test_anchors_take_the_strides_of_the_neck_and_regions_those_of_the_backbone():
    cfg = config(
        neck={"in_channels": "auto", "out_channels": 24, "start_level": 1, "num_outs": 5},
        rpn_head={"anchor_generator": {"strides": "auto"}},
        roi_head={"bbox_roi_extractor": {"featmap_strides": "auto"}},
    )
    model = resolve_auto(cfg).model
    assert model.rpn_head.anchor_generator.strides == [8, 16, 32, 64, 128]
    assert model.roi_head.bbox_roi_extractor.featmap_strides == [8, 16, 32]


def test_other_backbones_are_asked():
    register_all("mmdet")
    cfg = Config(
        {
            "default_scope": "mmdet",
            "model": {
                "backbone": {"type": "CSPDarknet", "widen_factor": 0.25, "deepen_factor": 0.33},
                "neck": {"type": "YOLOXPAFPN", "in_channels": "auto", "out_channels": 64},
                "bbox_head": {"in_channels": "auto", "strides": "auto"},
            },
        }
    )
    model = resolve_auto(cfg).model
    assert model.neck.in_channels == [64, 128, 256]
    assert model.bbox_head == {"in_channels": 64, "strides": [8, 16, 32]}


def test_a_neck_of_one_level_takes_the_last():
    register_all("mmdet")
    cfg = config(neck={"type": "ELADilatedEncoder", "in_channels": "auto", "out_channels": 512})
    cfg.default_scope = "mmdet"
    assert resolve_auto(cfg).model.neck.in_channels == 128


def test_heads_without_a_neck_take_the_levels_they_name():
    cfg = config(
        decode_head={"in_channels": "auto", "in_index": [0, 2]},
        auxiliary_head={"in_channels": "auto", "in_index": 2},
    )
    model = resolve_auto(cfg).model
    assert model.decode_head.in_channels == [32, 96]
    assert model.auxiliary_head.in_channels == 96


def test_heads_with_strides_take_a_level_for_each():
    cfg = config(panoptic_head={"in_channels": "auto", "strides": [4, 8, 16]})
    assert resolve_auto(cfg).model.panoptic_head.in_channels == [32, 64, 96]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"decode_head": {"in_channels": "auto"}}, "no in_index"),
        ({"decode_head": {"in_channels": "auto", "in_index": 4}}, "there are 4 levels"),
        ({"backbone": {"type": "ResNet"}, "neck": {"in_channels": "auto"}}, "'ResNet'"),
    ],
)
def test_channels_that_cannot_be_known_are_named(parts, message):
    cfg = Config({"model": {"backbone": {"type": "TimmBackbone", **SMALL}} | parts})
    with pytest.raises(ConfigError, match=message):
        resolve_auto(cfg)
