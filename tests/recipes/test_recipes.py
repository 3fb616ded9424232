"""Every recipe builds its true model and trains, on small images of embedded data."""

import gc
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from _stand_in import Scenes, dataset_configs, write
from mmengine.registry import DefaultScope

import visattn
from visattn.tools.train import set_precision
from visattn.zoo.config import load_config
from visattn.zoo.data.checks import declared_classes
from visattn.zoo.training.runner import build_runner

CONFIGS = Path(visattn.__file__).parent / "configs"
RECIPES = sorted(
    path
    for path in CONFIGS.rglob("*.py")
    if CONFIGS in (path.parent.parent, path.parent.parent.parent)
    and "_base_" not in path.parts
    and not path.stem.endswith("_embedded")
)
BATCH = 2
# Losses of distance need pairs of both kinds.
PAIRS = {"num_identities": 2, "num_instances": 2}
REGIONS = 16
# Sizes in pipelines are divided by this, to multiples of 32.
# Networks that are frozen keep the size they were made for.
REDUCTION = {
    "classification": 3,
    "detection": 8,
    "diffusion": 8,
    "fine_grained": 5,
    "probing": 1,
    "prompting": 1,
    "reid": 2,
    "segmentation": 5,
}
SIZES = {"crop_size", "img_scale", "img_size", "resize", "scale", "scales", "size"}

_runs = itertools.count()


def smaller(node: Any, by: int) -> Any:
    """The node with all sizes in pixels that it states divided."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in SIZES and key != "type" and _is_size(value):
                node[key] = _divided(value, by)
            else:
                node[key] = smaller(value, by)
    elif isinstance(node, (list, tuple)):
        return type(node)(smaller(item, by) for item in node)
    return node


def fewer_regions(node: Any) -> None:
    """Has the heads of detectors see few regions: they cost more than the backbone."""
    if isinstance(node, dict):
        if node.get("type") == "RandomSampler":
            node["num"] = min(node["num"], REGIONS)
        if "max_per_img" in node:
            node["max_per_img"] = min(node["max_per_img"], REGIONS)
        node = node.values()
    if not isinstance(node, str) and hasattr(node, "__iter__"):
        for item in node:
            fewer_regions(item)


def _is_size(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(_is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool) and value >= 32


def _divided(value: Any, by: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_divided(item, by) for item in value)
    if by == 1:
        return value
    return max(value // by // 32, 2) * 32


@pytest.fixture(autouse=True)
def _freed():
    yield
    gc.collect()


@pytest.mark.recipes
@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipe_trains_its_true_model(path, scenes, tmp_path):
    task = path.relative_to(CONFIGS).parts[0]
    cfg = load_config(path)
    num_classes = declared_classes(cfg.model) or 1000
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for number, dataset in enumerate(dataset_configs(cfg.train_dataloader.dataset)):
            write(dataset, num_classes, tmp_path / f"data{number}", Scenes(scenes))
    smaller(cfg.train_dataloader, REDUCTION[task])
    smaller(cfg.model.get("data_preprocessor") or {}, REDUCTION[task])
    fewer_regions(cfg.model)
    cfg.train_dataloader.update(batch_size=BATCH, num_workers=0, persistent_workers=False)
    if "batch_sampler" not in cfg.train_dataloader:
        cfg.train_dataloader.drop_last = True
    if cfg.train_dataloader.get("sampler", {}).get("type") == "IdentitySampler":
        cfg.train_dataloader.sampler.update(PAIRS)
        cfg.train_dataloader.batch_size = math.prod(PAIRS.values())
    if task == "diffusion":
        cfg.model.pretrained = narrowed(cfg.model, tmp_path / "pipeline")
        # Its first rates are too small to move a weight.
        cfg.param_scheduler = None
    name = cfg.model.get("backbone", {}).get("model_name", "")
    if REDUCTION[task] > 1 and name.startswith(("deit_", "vit_")):
        cfg.model.backbone.dynamic_img_size = True
    for key in ("prefetch_factor", "pin_memory"):
        cfg.train_dataloader.pop(key, None)
    if "pretrained" in cfg.model.get("backbone", {}):
        cfg.model.backbone.pretrained = False
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg = {"type": "ResumableIterTrainLoop", "max_iters": 2, "val_interval": 10}
    cfg.default_hooks.checkpoint = None
    cfg.custom_hooks = [
        h
        for h in cfg.get("custom_hooks") or []
        if h.type not in ("FinalTestHook", "SavePipelineHook")
    ]
    for hook in cfg.custom_hooks:
        if "begin_iter" in hook:
            hook.begin_iter = 1
    if task == "probing":
        cfg.model.backbone.pop("pretrained")
        # Its first rates are too small to move a weight.
        cfg.param_scheduler = None
    set_precision(cfg.optim_wrapper, "none")
    cfg.optim_wrapper.pop("accumulative_counts", None)
    cfg.visualizer = {"type": "Visualizer", "vis_backends": []}
    cfg.work_dir, cfg.log_level = str(tmp_path / "run"), "ERROR"
    cfg.experiment_name = f"recipe_{next(_runs)}"

    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        runner = build_runner(cfg)
        before = {name: p.detach().clone() for name, p in trained(runner).items()}
        runner.train()

    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == runner.iter == 2 and all(map(math.isfinite, losses))
    moved = sum(not torch.equal(p, before[name]) for name, p in trained(runner).items())
    assert moved > 0.5 * len(before)
    if cfg.default_scope == "mmdet":
        takes_what_mmdet_tests_with(runner.bare_model, num_classes)


def narrowed(model: Any, folder: Path) -> str:
    """A pipeline like Stable Diffusion 1.5 in all but width; its ROICtrl has the true size."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as UNet

    from visattn.heads.diffusion.roictrl import apply
    from visattn.zoo.diffusion.text import make_text_encoder, make_tokenizer

    with torch.device("meta"):
        unet = UNet(cross_attention_dim=768, sample_size=64, attention_head_dim=8)
        assert sum(p.numel() for p in unet.parameters()) == 859_520_964
        apply(unet, **model.roictrl)
    assert sum(p.numel() for p in unet.parameters() if p.requires_grad) == 249_204_464
    tokenizer = make_tokenizer(["a", "digit"], 77)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            norm_num_groups=2,
        ),
        text_encoder=make_text_encoder(
            tokenizer,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        ),
        tokenizer=tokenizer,
        unet=UNet(
            block_out_channels=(16, 16, 16, 16),
            cross_attention_dim=16,
            attention_head_dim=8,
            norm_num_groups=4,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)


def takes_what_mmdet_tests_with(model: torch.nn.Module, num_classes: int) -> None:
    """Has a detector give losses and predictions of mmdet's own test inputs."""
    from mmdet.testing import demo_mm_inputs

    inputs = demo_mm_inputs(
        image_shapes=[(3, 128, 127), (3, 91, 92)],
        num_items=[3, 1],
        # Semantic maps have classes of their own; those of boxes are of the first.
        num_classes=min(num_classes, 8),
        with_mask=True,
        with_semantic=hasattr(model, "panoptic_head") and model.panoptic_head.num_stuff_classes > 0,
    )
    with torch.no_grad():
        losses = model.train()(**model.data_preprocessor(inputs, training=True), mode="loss")
        results = model.eval()(**model.data_preprocessor(inputs), mode="predict")
    for name, loss in losses.items():
        assert all(part.isfinite() for part in (loss if isinstance(loss, list) else [loss])), name
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert len(found.bboxes) == len(found.scores) == len(found.labels)
        assert (found.labels >= 0).all() and (found.labels < num_classes).all()
        if "masks" in found:
            assert found.masks.shape[1:] == tuple(result.ori_shape)


def trained(runner: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in runner.bare_model.named_parameters() if p.requires_grad}
