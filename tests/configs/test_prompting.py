"""Recipes of prompting are those of the papers."""

from pathlib import Path

import pytest
import timm
import torch
import yaml

import visattn
from visattn.heads.prompts import trainable_state_dict
from visattn.zoo.config import load_config
from visattn.zoo.data.vtab import TASKS
from visattn.zoo.training.prompting import put_prompts

ROOT = Path(visattn.__file__).parent
CONFIGS = ROOT / "configs" / "prompting"
MODELS = yaml.safe_load((CONFIGS / "metafile.yml").read_text())["Models"]
# Classes, learning rate, weight decay and entries of a pool.
HTA = {
    "dtd": (47, 0.01, 0.1, 18),
    "cub": (200, 0.0015, 0.5, 18),
    "nabirds": (555, 0.001, 0.5, 18),
    "dogs": (120, 0.004, 0.5, 16),
    "flowers": (102, 0.014, 1.4, 18),
    "food101": (101, 0.005, 0.1, 18),
    "cifar100": (100, 0.004, 0.1, 18),
    "cifar10": (10, 0.005, 0.1, 18),
    "gtsrb": (43, 0.001, 0.1, 18),
    "svhn": (10, 0.002, 0.1, 18),
}


def build(model_cfg):
    backbone = {**model_cfg.backbone, "pretrained": False}
    with torch.device("meta"):
        model = timm.create_model(**backbone)
    put_prompts(model, model_cfg.prompts)
    return model


@pytest.mark.parametrize("dataset", HTA)
def test_settings_of_tcpa_are_the_authors(dataset):
    cfg = load_config(CONFIGS / "tcpa" / f"vfpt-tcpa_vit-base_100e_{dataset}.py")
    classes, lr, weight_decay, entries = HTA[dataset]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (lr, weight_decay)
    assert cfg.model.backbone.num_classes == classes
    pools = build(cfg.model).blocks[0].prompts
    for pool in (pools.cls, pools.image):
        assert (*pool.prompts.shape, pool.topk) == (entries, 1, 768, 10)
    assert cfg.model.pool_loss_weight == 0.01
    assert ("iprompt" in cfg.model.prompts) == (dataset == "cub")
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.max_epochs) == (128, 100)


@pytest.mark.parametrize("dataset", HTA)
@pytest.mark.parametrize("recipe", ["tcpa/vfpt-tcpa", "tcpa/vpt-tcpa", "vpt/vpt-deep", "vfpt/vfpt"])
def test_nothing_is_chosen_on_the_test_set(recipe, dataset):
    cfg = load_config(CONFIGS / f"{recipe}_vit-base_100e_{dataset}.py")
    loaders = (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)
    assert [loader.dataset.split for loader in loaders] == ["train", "val", "test"]
    kinds = {(loader.dataset.type, loader.dataset.data_root) for loader in loaders}
    assert len(kinds) == 1
    assert any(hook.type == "FinalTestHook" for hook in cfg.custom_hooks)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_vtab_has_a_recipe(task):
    name = f"vpt-deep_vit-base_vtab-{task.replace('_', '-')}.py"
    cfg = load_config(CONFIGS / "vpt" / name)
    assert cfg.model.backbone.num_classes == TASKS[task].num_classes
    splits = [
        (loader.dataset.task, loader.dataset.split)
        for loader in (cfg.train_dataloader, cfg.test_dataloader)
    ]
    assert splits == [(task, "train800val200"), (task, "test")]


@pytest.mark.parametrize("entry", MODELS, ids=[entry["Name"] for entry in MODELS])
def test_stated_parameters_are_those_that_are_trained_beside_the_head(entry):
    trained = trainable_state_dict(build(load_config(ROOT / entry["Config"]).model))
    count = sum(p.numel() for name, p in trained.items() if not name.startswith("head."))
    assert count == entry["Metadata"]["Parameters"]


def test_rates_warm_up_and_then_fall_to_zero():
    from mmengine.optim.scheduler import CosineAnnealingLR, LinearLR

    schedule = load_config(CONFIGS / "tcpa/vfpt-tcpa_vit-base_100e_dtd.py").param_scheduler
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kinds = {"LinearLR": LinearLR, "CosineAnnealingLR": CosineAnnealingLR}
    schedulers = []
    for cfg in schedule:
        cfg = dict(cfg)
        kind = kinds[cfg.pop("type")]
        cfg.pop("convert_to_iter_based")
        schedulers.append(kind.build_iter_from_epoch(optimizer, epoch_length=5, **cfg))
    rates = []
    for _ in range(500):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates.index(max(rates)) in (99, 100) and max(rates) == pytest.approx(1)
    assert rates[300] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 1e-4
