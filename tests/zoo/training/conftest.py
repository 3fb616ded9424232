"""A tiny classification recipe, on random images, that trains in a second."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.hooks import Hook
from PIL import Image

RECIPE = """
default_scope = "visattn"
model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="test_vit", img_size=32, num_classes=3, drop_path_rate=0.1),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="{data}/train",
        pipeline=[dict(type="TimmTrainTransform", img_size=32)],
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="{data}/val",
        pipeline=[dict(type="TimmEvalTransform", img_size=32)],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 2))
test_evaluator = val_evaluator
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.05),
)
param_scheduler = dict(
    type="WarmupCosineLR", T_max=2, warmup=1, warmup_lr=1e-5, convert_to_iter_based=True
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=2)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type="AtomicCheckpointHook", interval=1, by_epoch=False),
    logger=dict(type="LoggerHook", interval=1),
)
log_level = "WARNING"
randomness = dict(seed=0)
custom_hooks = []
"""


@pytest.fixture
def recipe(tmp_path: Path) -> SimpleNamespace:
    """A recipe of 2 epochs of 4 iterations: ``path``, ``data`` and ``train(work_dir, **changes)``.

    ``train`` takes changes of the configuration by dotted name, trains in this process, and returns
    the runner. It adds ``hooks``, and with ``stop_before`` breaks off before that iteration.
    """
    from visattn.zoo.config import load_config
    from visattn.zoo.training.runner import build_runner

    data = tmp_path / "images"
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label in range(3):
            folder = data / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE.format(data=data))
    names = (f"{tmp_path.name}_{number}" for number in itertools.count())

    def build(work_dir: str, **changes):
        cfg = load_config(path, {key.replace("__", "."): v for key, v in changes.items()})
        cfg.work_dir = str(tmp_path / work_dir)
        cfg.experiment_name = next(names)
        return build_runner(cfg)

    def train(work_dir: str, stop_before: int | None = None, hooks: Sequence[Hook] = (), **changes):
        runner = build(work_dir, **changes)
        for hook in hooks:
            runner.register_hook(hook)
        if stop_before is not None:
            runner.register_hook(InterruptionHook(stop_before))
            with pytest.raises(Interruption):
                runner.train()
        else:
            runner.train()
        return runner

    return SimpleNamespace(path=path, data=data, build=build, train=train, folder=tmp_path)


class Interruption(Exception):
    """What breaks off a training."""


class InterruptionHook(Hook):
    """Breaks off before an iteration."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise Interruption
