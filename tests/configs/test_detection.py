"""The recipes of detection are those of the papers' tables."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

import visattn
from visattn.backbones._agent import AgentBiasTables
from visattn.zoo.config import load_config
from visattn.zoo.openmm.auto import resolve_auto

ROOT = Path(visattn.__file__).parent / "configs" / "detection"
FAMILIES = ("agent_pvt", "agent_swin", "biformer", "dinat", "nat")
HEADS = ("mask-rcnn_", "cascade-mask-rcnn_", "retinanet_")
LEAFS = {
    path.stem: path
    for family in FAMILIES
    for path in sorted((ROOT / family).glob("*.py"))
    if path.name.startswith(HEADS)
}
PUBLISHED = [name for name in LEAFS if name.endswith("_coco")]
ENTRIES = {
    entry["Name"]: entry
    for family in FAMILIES
    for entry in yaml.safe_load((ROOT / family / "metafile.yml").read_text())["Models"]
    if entry["Name"].startswith(HEADS)
}


class Recipe(NamedTuple):
    """What a paper's code says of a row of its table."""

    drop_path: float
    millions: int | None
    lr: float = 1e-4
    fp16: bool = False
    weight_decay: float = 0.05


def fp16(*args, **kwargs):
    return Recipe(*args, fp16=True, **kwargs)


def pvt(*args, **kwargs):
    return Recipe(*args, weight_decay=1e-4, **kwargs)


RECIPES = {
    "mask-rcnn_biformer-small_fpn_1x_coco": fp16(0.2, None),
    "mask-rcnn_biformer-base_fpn_1x_coco": fp16(0.3, None),
    "retinanet_biformer-small_fpn_1x_coco": fp16(0.2, None, weight_decay=1e-4),
    "retinanet_biformer-base_fpn_1x_coco": fp16(0.3, None, weight_decay=1e-4),
    "mask-rcnn_agent-pvt-tiny_fpn_1x_coco": pvt(0.1, 31, lr=2e-4),
    "mask-rcnn_agent-pvt-small_fpn_1x_coco": pvt(0.2, 40, lr=2e-4),
    "mask-rcnn_agent-pvt-medium_fpn_1x_coco": pvt(0.1, 56, lr=2e-4),
    "mask-rcnn_agent-pvt-large_fpn_1x_coco": pvt(0.2, 68, lr=2e-4),
    "retinanet_agent-pvt-tiny_fpn_1x_coco": pvt(0.1, 21),
    "retinanet_agent-pvt-small_fpn_1x_coco": pvt(0.1, 30),
    "retinanet_agent-pvt-medium_fpn_1x_coco": pvt(0.2, 46),
    "retinanet_agent-pvt-large_fpn_1x_coco": pvt(0.3, 58),
    "mask-rcnn_agent-swin-tiny_fpn_1x_coco": Recipe(0.1, 48),
    "mask-rcnn_agent-swin-tiny_fpn_3x_coco": Recipe(0.1, 48),
    "mask-rcnn_agent-swin-small_fpn_1x_coco": Recipe(0.1, 69),
    "mask-rcnn_agent-swin-small_fpn_3x_coco": Recipe(0.1, 69),
    "cascade-mask-rcnn_agent-swin-tiny_fpn_1x_coco": Recipe(0.1, 86),
    "cascade-mask-rcnn_agent-swin-tiny_fpn_3x_coco": Recipe(0.1, 86),
    "cascade-mask-rcnn_agent-swin-small_fpn_3x_coco": Recipe(0.1, 107),
    "cascade-mask-rcnn_agent-swin-base_fpn_3x_coco": Recipe(0.4, 145),
    "mask-rcnn_nat-mini_fpn_3x_coco": fp16(0.2, 40),
    "mask-rcnn_nat-tiny_fpn_3x_coco": fp16(0.2, 48),
    "mask-rcnn_nat-small_fpn_3x_coco": fp16(0.35, 70),
    "cascade-mask-rcnn_nat-mini_fpn_3x_coco": fp16(0.2, 77),
    "cascade-mask-rcnn_nat-tiny_fpn_3x_coco": fp16(0.3, 85),
    "cascade-mask-rcnn_nat-small_fpn_3x_coco": fp16(0.3, 108),
    "cascade-mask-rcnn_nat-base_fpn_3x_coco": fp16(0.5, 147),
    "mask-rcnn_dinat-mini_fpn_3x_coco": fp16(0.2, 40),
    "mask-rcnn_dinat-tiny_fpn_3x_coco": fp16(0.2, 48),
    "mask-rcnn_dinat-small_fpn_3x_coco": fp16(0.35, 70),
    "cascade-mask-rcnn_dinat-mini_fpn_3x_coco": fp16(0.2, 77),
    "cascade-mask-rcnn_dinat-tiny_fpn_3x_coco": fp16(0.3, 85),
    "cascade-mask-rcnn_dinat-small_fpn_3x_coco": fp16(0.5, 108),
    "cascade-mask-rcnn_dinat-base_fpn_3x_coco": fp16(0.6, 147, lr=7.5e-5),
    "cascade-mask-rcnn_dinat-large_fpn_3x_coco": Recipe(0.6, 258, lr=7.5e-5),
    "mask-rcnn_dinat-s-tiny_fpn_3x_coco": fp16(0.2, 48),
    "mask-rcnn_dinat-s-small_fpn_3x_coco": fp16(0.35, 69),
    "cascade-mask-rcnn_dinat-s-tiny_fpn_3x_coco": fp16(0.3, 86),
    "cascade-mask-rcnn_dinat-s-small_fpn_3x_coco": fp16(0.5, 107),
    "cascade-mask-rcnn_dinat-s-base_fpn_3x_coco": fp16(0.6, 145, lr=7.5e-5),
    "cascade-mask-rcnn_dinat-s-large_fpn_3x_coco": fp16(0.6, 253, lr=5e-5),
}
# What backbones for large images have, by the start of the model's name.
GEOMETRY = {
    "biformer": {"n_win": 16, "norm_eval": True, "norm_outputs": "layernorm2d"},
    "agent_pvt": {"agent_shapes": ((12, 12), (16, 16), (28, 28), (28, 28))},
    "agent_swin": {"agent_shapes": ((9, 9), (12, 12), (14, 14), (7, 7))},
    "nat": {},
    "dinat": {"dilations": ((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3))},
    "dinat_s": {"dilations": ((1, 28), (1, 14), (1, 3, 1, 5, 1, 7), (1, 3))},
}
MILESTONES = {"1x": (12, [8, 11]), "3x": (36, [27, 33])}


def geometry(name):
    model = ENTRIES[name]["Model"]
    return GEOMETRY[max((key for key in GEOMETRY if model.startswith(f"{key}_")), key=len)]


def schedule(name):
    return next(part for part in name.split("_") if part in MILESTONES)


def mark_heavy(names):
    """Models that differ from another in size alone are built by the heavy tests."""
    for name in names:
        bases = LEAFS[name].read_text().partition("_base_ = ")[2]
        is_first = bases.startswith(("[", '"../')) and not name.endswith("tiny_fpn_3x_coco")
        is_first |= "dinat-s-tiny" in name
        yield pytest.param(name, marks=[] if is_first else [pytest.mark.heavy])


BUILT = list(mark_heavy(LEAFS))
BUILT_PUBLISHED = list(mark_heavy(PUBLISHED))


def read(name):
    """The configuration, unchecked."""
    return Config.fromfile(LEAFS[name])


@cache
def detector(name):
    """The checked configuration, and the model without memory."""
    cfg = resolve_auto(load_config(LEAFS[name]))
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        return SimpleNamespace(cfg=cfg, model=MODELS.build(cfg.model))


def shrink(node):
    """Makes the heads of a model narrow, and their proposals and samples few."""
    small = {"num": 16, "max_per_img": 20, "fc_out_channels": 32, "conv_out_channels": 32}
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in small:
            node[key] = small[key]
        elif isinstance(value, (dict, list)):
            shrink(value)


def test_every_row_of_the_papers_has_a_leaf_and_an_entry():
    assert set(PUBLISHED) == set(RECIPES) == set(ENTRIES)


@pytest.mark.parametrize("name", LEAFS)
def test_first_line_is_the_command_that_runs_it(name):
    path = LEAFS[name].relative_to(ROOT.parents[1])
    command = LEAFS[name].read_text().partition("\n_base_")[0]
    assert command.replace(" \\\n#    ", "") == f"# python tools/train.py {path}"


@pytest.mark.parametrize("name", RECIPES)
def test_optimiser_and_schedule_are_the_papers(name):
    cfg, recipe = read(name), RECIPES[name]
    epochs, milestones = MILESTONES[schedule(name)]
    assert cfg.optim_wrapper.optimizer == {
        "type": "AdamW",
        "lr": recipe.lr,
        "weight_decay": recipe.weight_decay,
    }
    assert cfg.optim_wrapper.type == ("AutocastOptimWrapper" if recipe.fp16 else "OptimWrapper")
    assert cfg.optim_wrapper.get("dtype") == ("float16" if recipe.fp16 else None)
    warmup, steps = cfg.param_scheduler
    assert (warmup.type, warmup.end, warmup.start_factor) == ("LinearLR", 500, 0.001)
    assert (steps.type, steps.milestones, steps.gamma) == ("MultiStepLR", milestones, 0.1)
    assert cfg.train_cfg.max_epochs == ENTRIES[name]["Metadata"]["Epochs"] == steps.end == epochs
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size


@pytest.mark.parametrize("name", RECIPES)
def test_backbone_is_the_papers(name):
    backbone = read(name).model.backbone
    assert backbone.drop_path_rate == RECIPES[name].drop_path
    assert backbone.model_name == ENTRIES[name]["Model"]
    for key, value in geometry(name).items():
        assert backbone[key] == value
    if backbone.model_name.startswith(("nat", "dinat", "agent_swin")):
        assert backbone.norm_outputs == {"type": "layernorm2d", "eps": 1e-5}


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].millions])
def test_stated_number_of_parameters_is_the_papers(name):
    assert round(ENTRIES[name]["Metadata"]["Parameters"] / 1e6) == RECIPES[name].millions


@pytest.mark.parametrize("name", BUILT)
def test_heads_have_the_classes_of_the_data(name):
    model = detector(name).model
    heads = model.roi_head if hasattr(model, "roi_head") else model.bbox_head
    classes = {module.num_classes for module in heads.modules() if hasattr(module, "num_classes")}
    assert classes == {80 if name in RECIPES else 10}


@pytest.mark.parametrize("name", BUILT_PUBLISHED)
def test_number_of_parameters_is_as_stated(name):
    count = sum(parameter.numel() for parameter in detector(name).model.parameters())
    assert count == ENTRIES[name]["Metadata"]["Parameters"]


@pytest.mark.parametrize("name", BUILT_PUBLISHED)
def test_weight_decay_spares_what_the_papers_code_spares(name):
    cfg, model = detector(name).cfg, detector(name).model
    spared = set()
    if cfg.model.type != "RetinaNet" and "agent_pvt" not in cfg.model.backbone.model_name:
        kinds = (nn.LayerNorm, AgentBiasTables)
        spared = {
            f"{prefix}.{key}"
            for prefix, module in model.named_modules()
            for key, _ in module.named_parameters()
            if isinstance(module, kinds) or key == "rpb"
        }
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert {key: decays[id(parameter)] for key, parameter in model.named_parameters()} == {
        key: 0.0 if key in spared else RECIPES[name].weight_decay
        for key, _ in model.named_parameters()
    }


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_agent-pvt-tiny_fpn_1x_coco",
        "mask-rcnn_biformer-small_fpn_1x_coco",
        "cascade-mask-rcnn_nat-mini_fpn_3x_coco",
    ],
)
def test_trains_and_predicts(name):
    cfg = load_config(LEAFS[name], {"model.backbone.depths": (1, 1, 1, 1)})
    # Not before the operators of mmcv are in place.
    from mmdet.testing import demo_mm_inputs

    shrink(cfg.model)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = revert_sync_batchnorm(MODELS.build(resolve_auto(cfg).model))
    with_mask = cfg.model.type != "RetinaNet"
    inputs = demo_mm_inputs(2, [[3, 96, 128], [3, 80, 96]], num_classes=80, with_mask=with_mask)
    losses = model(**model.data_preprocessor(inputs, training=True), mode="loss")
    total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if "loss" in k)
    total.backward()
    # A sum over none, such as of boxes, may leave a gradient of zeros, but never none.
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert total.isfinite() and not missing
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(inputs), mode="predict")
    for result in results:
        assert len(result.pred_instances.bboxes) == len(result.pred_instances.scores)
        if with_mask:
            assert result.pred_instances.masks.shape[1:] == tuple(result.ori_shape)


@pytest.fixture
def coco(tmp_path):
    """A COCO data set of one image of noise with one polygon."""
    (tmp_path / "train2017").mkdir()
    pixels = np.random.randint(0, 255, (480, 640, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "train2017" / "1.jpg"), pixels)
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [100, 100, 400, 300],
        "area": 120000,
        "iscrowd": 0,
        "segmentation": [[100, 100, 500, 100, 500, 400, 100, 400]],
    }
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 480, "width": 640}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("retinanet_agent-pvt-tiny_fpn_1x_coco", {800}),
        ("mask-rcnn_biformer-small_fpn_1x_coco", {800}),
        ("mask-rcnn_nat-mini_fpn_3x_coco", set(range(480, 801, 32))),
    ],
)
def test_images_are_resized_as_published(name, shorter, coco):
    cfg = load_config(LEAFS[name], {"train_dataloader.dataset.data_root": str(coco)})
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        samples = [dataset[0]["data_samples"] for _ in range(40)]
    shapes = [sample.img_shape for sample in samples]
    assert max(max(shape) for shape in shapes) <= 1333
    # Where a crop is long, its longer side is what is limited.
    assert {min(shape) for shape in shapes if max(shape) < 1333} <= shorter
    assert len(set(shapes)) >= len(shorter)
    is_mask = "mask" in name
    assert all(("masks" in sample.gt_instances) == is_mask for sample in samples)
