"""The recipes of segmentation build, and train as the papers' do."""

import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope
from timm.layers import DropPath
from torch import nn

import visattn
from visattn.backbones.nat import NeighborhoodAttention
from visattn.zoo.config import load_config
from visattn.zoo.openmm.auto import resolve_auto

ROOT = Path(visattn.__file__).parent
CONFIGS = ROOT / "configs"
PATHS = {
    path.stem: path
    for path in sorted(
        [
            *(CONFIGS / "segmentation").glob("[!_]*/*.py"),
            *(CONFIGS / "detection").glob("*/mask2former_*.py"),
        ]
    )
}
PAPERS = [name for name in PATHS if "embedded" not in name]

# Millions of parameters, as the papers give them.
MILLIONS = {
    "semantic-fpn_agent-pvt-tiny_40k_ade20k-512x512": 15,
    "semantic-fpn_agent-pvt-small_40k_ade20k-512x512": 24,
    "semantic-fpn_agent-pvt-medium_40k_ade20k-512x512": 40,
    "semantic-fpn_agent-pvt-large_40k_ade20k-512x512": 52,
    "upernet_agent-swin-tiny_160k_ade20k-512x512": 61,
    "upernet_agent-swin-small_160k_ade20k-512x512": 81,
    "upernet_agent-swin-base_160k_ade20k-512x512": 121,
    "upernet_nat-mini_160k_ade20k-512x512": 50,
    "upernet_nat-tiny_160k_ade20k-512x512": 58,
    "upernet_nat-small_160k_ade20k-512x512": 82,
    "upernet_nat-base_160k_ade20k-512x512": 123,
    "upernet_dinat-mini_160k_ade20k-512x512": 50,
    "upernet_dinat-tiny_160k_ade20k-512x512": 58,
    "upernet_dinat-small_160k_ade20k-512x512": 82,
    "upernet_dinat-base_160k_ade20k-512x512": 123,
    "upernet_dinat-large_160k_ade20k-640x640": 238,
    "upernet_dinat-s-tiny_160k_ade20k-512x512": 60,
    "upernet_dinat-s-small_160k_ade20k-512x512": 81,
    "upernet_dinat-s-base_160k_ade20k-512x512": 121,
    "upernet_dinat-s-large_160k_ade20k-640x640": 234,
    **{name: 220 for name in PAPERS if name.startswith("mask2former")},
}
# Stochastic depth by head and model; models of a family not named have that of the family.
DROP_PATH = {
    "semantic-fpn_biformer-small": 0.15,
    "semantic-fpn_biformer-base": 0.3,
    "upernet_biformer-small": 0.3,
    "upernet_biformer-base": 0.4,
    "semantic-fpn_agent-pvt": 0.1,
    "semantic-fpn_agent-pvt-medium": 0.2,
    "upernet_agent-swin": 0.3,
    "upernet_agent-swin-base": 0.5,
    "upernet_nat-mini": 0.2,
    "upernet_nat-tiny": 0.3,
    "upernet_nat": 0.5,
    "upernet_dinat-mini": 0.2,
    "upernet_dinat-tiny": 0.3,
    "upernet_dinat-large": 0.3,
    "upernet_dinat-s-": 0.3,
    "upernet_dinat": 0.5,
    "mask2former_dinat-large": 0.3,
}
_CYCLE = (1, 2, 1, 3, 1, 4)
_LARGE = (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5)
DILATIONS = {
    "upernet_dinat": ((1, 16, 1), (1, 4, 1, 8), _CYCLE, (1, 2, 1, 2, 1)),
    "upernet_dinat-large": ((1, 20, 1), (1, 5, 1, 10), _LARGE, (1, 2, 1, 2, 1)),
    "upernet_dinat-s-": ((1, 16), (1, 8), _CYCLE, (1, 2)),
    "upernet_dinat-s-large": ((1, 20), (1, 10), _LARGE, (1, 2)),
    "mask2former_dinat-large": (
        (1, 14, 1), (1, 4, 1, 7), (*(1, 2, 1, 3) * 4, 1, 3), (1, 1, 1, 1, 1)
    ),
}  # fmt: skip
# What the optimisers of the papers do not decay, by our names.
UNDECAYED = {
    "upernet_biformer": r"^backbone\..*(blocks\.\d+\.norm\d|norms\.\d)\.",
    "upernet_agent-swin": r"^backbone\..*(norm|rpb|key_bias|query_bias)",
    "upernet_nat": r"^backbone\..*(norm|rpb)",
    "upernet_dinat": r"^backbone\..*(norm|rpb)",
    "mask2former": (
        r"^backbone\..*norm|^(decode|panoptic)_head\.(query_embed|query_feat|level_embed)\."
        r"|\.norms\.\d|\.gn\.|\.post_norm\."
    ),
}


def lookup(table, name):
    """The value of the longest key that a name begins with, or None."""
    keys = [key for key in table if name.startswith(key)]
    return table[max(keys, key=len)] if keys else None


def sample(names):
    """Names as parameters; those of a head and family that came before are heavy."""
    seen, parameters = set(), []
    for name in names:
        kind = (name.partition("_")[0], PATHS[name].parent, "embedded" in name)
        marks = [pytest.mark.heavy] if kind in seen else []
        parameters.append(pytest.param(name, marks=marks))
        seen.add(kind)
    return parameters


@cache
def build(name):
    """A recipe and its model, without memory."""
    cfg = resolve_auto(load_config(PATHS[name]))
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        return cfg, MODELS.build(cfg.model)


@cache
def optimizer_groups(name):
    """Learning rate and decay of each parameter over those of the recipe, by name."""
    cfg, model = build(name)
    init_default_scope(cfg.default_scope)
    settings = cfg.optim_wrapper.optimizer
    wrapper = build_optim_wrapper(model, ConfigDict(cfg.optim_wrapper))
    of = {
        id(parameter): (group["lr"] / settings.lr, group["weight_decay"] / settings.weight_decay)
        for group in wrapper.optimizer.param_groups
        for parameter in group["params"]
    }
    return {key: of[id(parameter)] for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", sample(PATHS))
def test_builds_its_model(name):
    cfg, model = build(name)
    assert next(model.parameters()).is_meta
    assert cfg.model.backbone.get("checkpoint") is None


@pytest.mark.parametrize("name", PATHS)
def test_first_lines_are_the_command(name):
    path = PATHS[name].relative_to(ROOT).as_posix()
    command = re.match(r"(# .*\n)+", PATHS[name].read_text())[0]
    assert "tools/train.py" in command and path in command


@pytest.mark.parametrize("name", sample(MILLIONS))
def test_has_the_papers_number_of_parameters(name):
    count = sum(parameter.numel() for parameter in build(name)[1].parameters())
    assert abs(count / 1e6 - MILLIONS[name]) < 1


METAFILES = {
    entry["Name"]: entry["Metadata"]["Parameters"]
    for path in (CONFIGS / "segmentation").glob("*/metafile.yml")
    for entry in yaml.safe_load(path.read_text())["Models"]
}


@pytest.mark.parametrize("name", sample(METAFILES))
def test_has_the_parameters_that_the_metafile_states(name):
    assert sum(p.numel() for p in build(name)[1].parameters()) == METAFILES[name]


def test_every_recipe_of_a_paper_has_its_figures():
    ours = {name for name in PAPERS if "cityscapes" in name and name.startswith("upernet")}
    assert set(METAFILES) == set(PAPERS) - ours


@pytest.mark.parametrize("name", sample(PAPERS))
def test_decays_what_the_paper_decays(name):
    pattern = lookup(UNDECAYED, name) or r"^$"
    undecayed = {key for key, (_, decay) in optimizer_groups(name).items() if decay == 0}
    assert undecayed == {key for key in optimizer_groups(name) if re.search(pattern, key)}
    assert {decay for _, decay in optimizer_groups(name).values()} <= {0, 1}


@pytest.mark.parametrize("name", sample(n for n in PAPERS if n.startswith("mask2former")))
def test_no_norm_of_mask2former_decays(name):
    _, model = build(name)
    norms = [
        f"{path}.{key}"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for key, _ in module.named_parameters()
    ]
    assert norms and all(optimizer_groups(name)[key][1] == 0 for key in norms)


@pytest.mark.parametrize("name", sample(PAPERS))
def test_backbone_has_its_share_of_the_rate(name):
    share = 0.1 if name.startswith(("mask2former", "deeplabv3")) else 1.0
    for key, (rate, _) in optimizer_groups(name).items():
        assert rate == pytest.approx(share if key.startswith("backbone.") else 1.0)


def poly(base, last, power, warmup=0, ratio=1.0):
    """The rate of mmcv 1: a warm-up under a curve that falls over all iterations."""

    def rate(iteration):
        warm = 1.0 if iteration >= warmup else 1 - (1 - iteration / warmup) * (1 - ratio)
        return base * (1 - iteration / last) ** power * warm

    return last, rate


def cosine(base, last, warmup, ratio):
    def rate(iteration):
        warm = 1.0 if iteration >= warmup else 1 - (1 - iteration / warmup) * (1 - ratio)
        return base * (1 + math.cos(math.pi * iteration / last)) / 2 * warm

    return last, rate


SCHEDULES = {
    r"upernet_.*_160k_ade20k": poly(6e-5, 160_000, 1.0, 1500, 1e-6),
    r"upernet_.*_80k_cityscapes": poly(6e-5, 80_000, 1.0, 1500, 1e-6),
    r"semantic-fpn_agent-pvt": poly(2e-4, 40_000, 0.9),
    r"semantic-fpn_biformer": cosine(2e-4, 80_000, 1000, 0.1),
    r"deeplabv3_ela": poly(0.025, 60_000, 0.9),
    r"mask2former_.*_160k_ade20k": poly(1e-4, 160_000, 0.9),
    r"mask2former_.*_90k_cityscapes": poly(1e-4, 90_000, 0.9),
    r"mask2former_.*_100e_coco": (737_500, lambda iteration: 1e-4),
}


@pytest.mark.parametrize("name", sample(PAPERS))
def test_rates_are_the_papers(name):
    cfg = build(name)[0]
    last, rate = next(value for key, value in SCHEDULES.items() if re.match(key, name))
    assert cfg.train_cfg.max_iters == last == max(s.end for s in cfg.param_scheduler)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(s, default_args={"optimizer": optimizer})
        for s in cfg.param_scheduler
    ]
    for iteration in range(2001):
        if iteration in (0, 10, 700, 2000):
            expected = rate(iteration)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=2e-3, abs=1e-9)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_coco_falls_twice():
    cfg = build("mask2former_dinat-large_100e_coco-panoptic")[0]
    assert cfg.param_scheduler[0].milestones == [655_556, 710_184]


@pytest.mark.parametrize("name", sample(n for n in PAPERS if lookup(DROP_PATH, n) is not None))
def test_stochastic_depth_is_the_papers(name):
    rates = [m.drop_prob for m in build(name)[1].backbone.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(lookup(DROP_PATH, name)) == rates[-1]


@pytest.mark.parametrize("name", sample(n for n in PAPERS if lookup(DILATIONS, n) is not None))
def test_dilations_are_the_papers(name):
    stages = build(name)[1].backbone.model.model.stages
    for stage, expected in zip(stages, lookup(DILATIONS, name), strict=True):
        actual = [m.dilation for m in stage.modules() if isinstance(m, NeighborhoodAttention)]
        assert actual == [expected[i % len(expected)] for i in range(len(actual))]


@pytest.mark.parametrize("name", sample(PAPERS))
def test_precision_is_the_papers(name):
    half = re.match(r"(upernet|semantic-fpn)_(biformer|nat|dinat)", name)
    single = half is None or "dinat-large" in name
    wrapper = build(name)[0].optim_wrapper
    assert wrapper.type == ("OptimWrapper" if single else "AutocastOptimWrapper")


def test_biformer_has_the_windows_of_segmentation_and_keeps_its_statistics():
    cfg, model = build("upernet_biformer-small_160k_ade20k-512x512")
    assert cfg.model.backbone.n_win == 8
    model.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)


def test_elas_backbone_keeps_its_stride_and_statistics():
    backbone = build("deeplabv3_elaresnet50-s_60k_voc12-513x513")[1].backbone
    assert backbone.out_strides == (16,)
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.01}


TINY = {
    "type": "TimmBackbone",
    "model_name": "resnet18",
    "out_indices": (1, 2, 3, 4),
    "layers": (1, 1, 1, 1),
    "channels": (16, 32, 48, 64),
}
TINY_16 = {**TINY, "out_indices": (4,), "output_stride": 16}


def small_model(name, backbone):
    """The model of a recipe with its true heads on a small backbone."""
    cfg = load_config(PATHS[name])
    init_default_scope(cfg.default_scope)
    cfg.model.backbone = backbone
    if cfg.model.data_preprocessor.get("batch_augments"):
        cfg.model.data_preprocessor.batch_augments = None
    if "size" in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = (64, 64)
    model = revert_sync_batchnorm(MODELS.build(resolve_auto(cfg).model))
    model.init_weights()
    return model


def segmentation_batch(num_classes):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = torch.randint(num_classes, (1, 4, 4)).repeat_interleave(16, 1)
        labels = labels.repeat_interleave(16, 2)
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
        sample.set_metainfo({"img_shape": (64, 64), "ori_shape": (64, 64)})
        samples.append(sample)
    images = [torch.randint(256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    return {"inputs": images, "data_samples": samples}


def train_once(model, batch):
    """Trains on a batch; returns the losses and the parameters without a gradient."""
    model.train()
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    return total, [key for key, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("name", "backbone", "classes"),
    [
        ("upernet_nat-mini_160k_ade20k-512x512", TINY, 150),
        ("semantic-fpn_agent-pvt-tiny_40k_ade20k-512x512", TINY, 150),
        ("deeplabv3_elaresnet50-s_60k_voc12-513x513", TINY_16, 21),
        ("mask2former_dinat-large_90k_cityscapes-512x1024", TINY, 19),
    ],
)
def test_heads_train_and_predict(name, backbone, classes):
    model = small_model(name, backbone)
    batch = segmentation_batch(classes)
    loss, without = train_once(model, batch)
    assert loss.isfinite() and not without
    model.eval()
    with torch.no_grad():
        results = model.test_step(batch)
    assert results[0].pred_sem_seg.data.shape == (1, 64, 64)
    assert results[0].seg_logits.data.shape == (classes, 64, 64)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_mask2former_trains_and_predicts_instances(task):
    model = small_model(f"mask2former_dinat-large_90k_cityscapes-{task}", TINY)
    from mmdet.testing import demo_mm_inputs

    batch = demo_mm_inputs(
        2,
        image_shapes=[(3, 64, 64)] * 2,
        num_items=[2, 2],
        num_classes=8,
        with_mask=True,
        with_semantic=task == "panoptic",
        sem_seg_output_strides=1,
    )
    loss, _ = train_once(model, batch)
    assert loss.isfinite()
    model.eval()
    with torch.no_grad():
        result = model.test_step(batch)[0]
    assert result.pred_instances.masks.shape[1:] == (64, 64)
    assert ("pred_panoptic_seg" in result) == (task == "panoptic")


def test_views_of_test_time_augmentation(tmp_path):
    from mmengine.dataset import Compose
    from PIL import Image

    cfg = load_config(PATHS["upernet_nat-mini_160k_ade20k-512x512"])
    init_default_scope("mmseg")
    for kind in ("image", "labels"):
        Image.new("RGB" if kind == "image" else "L", (64, 32)).save(tmp_path / f"{kind}.png")
    views = Compose(cfg.tta_pipeline)(
        {
            "img_path": str(tmp_path / "image.png"),
            "seg_map_path": str(tmp_path / "labels.png"),
            "seg_fields": [],
            "reduce_zero_label": True,
            "label_map": None,
        }
    )
    shapes = {tuple(image.shape[1:]) for image in views["inputs"]}
    assert shapes == {(s, 2 * s) for s in (256, 384, 512, 640, 768, 896)}
    assert sorted(sample.flip for sample in views["data_samples"]) == [False] * 6 + [True] * 6
