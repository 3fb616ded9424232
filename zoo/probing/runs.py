"""Runs of probes: from cached features, with k-NN, and what is to be told of each head."""

import copy
import logging
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, DefaultScope

from ..benchmark.timing import percentiles, time_side_by_side
from ..errors import ConfigError
from ..training.runner import Runner, build_runner
from .data import FeatureDataset
from .features import cache_features
from .knn import best_knn, knn_accuracy
from .model import Probe
from .summary import COLUMNS, Row

__all__ = [
    "head_rows",
    "knn_row",
    "run_probe",
    "time_heads",
    "use_cached_features",
    "validation_images",
]

logger = logging.getLogger(__name__)


def run_probe(cfg: Config) -> tuple[Runner, list[Row]]:
    """Trains the heads of a configuration, and measures them.

    With ``probing.cached`` heads are trained on features that are read once, of images transformed
    as for validation; else the network runs on augmented images, as the published figures are made.
    With ``probing.knn`` there is a row for it.

    Args:
        cfg: Configuration of a ``Probe``, changed in place.

    Returns:
        The runner after training, and a row of ``COLUMNS`` a head.

    Raises:
        ConfigError: If the configuration is of another model.
    """
    if cfg.model.get("type") != "Probe":
        raise ConfigError(f"{cfg.filename} trains a {cfg.model.get('type')}: a Probe is needed")
    options = cfg.get("probing") or {}
    rows = [knn_row(cfg)] if options.get("knn") else []
    if options.get("cached"):
        use_cached_features(cfg)
    runner = build_runner(cfg)
    runner.train()
    return runner, [*head_rows(runner), *rows]


def use_cached_features(cfg: Config) -> None:
    """Has a configuration train and test on features, which are read where they are not there yet.

    Args:
        cfg: Configuration, changed in place.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "visattn")):
        model = MODELS.build(copy.deepcopy(cfg.model)).eval()
        parts = [p for p in ("train", "val", "test") if cfg.get(f"{p}_dataloader") is not None]
        folders = {part: _features(cfg, model, part) for part in parts}
    for part, folder in folders.items():
        cfg[f"{part}_dataloader"].dataset = {"type": "FeatureDataset", "folder": folder}


def _features(cfg: Config, model: Probe, part: str) -> str:
    """Folder of the features of a part of the data, of images transformed as for validation."""
    options = cfg.get("probing") or {}
    if not (cfg.model.get("checkpoint") or cfg.model.backbone.get("pretrained")):
        raise ConfigError(
            "features to keep would be of a network with random weights, which differ from run to "
            "run: set model.checkpoint=FILE or model.backbone.pretrained=True"
        )
    loader = cfg[f"{part}_dataloader"]
    dataset_cfg = copy.deepcopy(loader.dataset.to_dict())
    _innermost(dataset_cfg)["pipeline"] = _innermost(cfg.val_dataloader.dataset)["pipeline"]
    settings = {"dataset": dataset_cfg, "backbone": cfg.model.backbone.to_dict()}
    return str(
        cache_features(
            model,
            DATASETS.build(dataset_cfg),
            options.get("cache_dir", "work_dirs/features"),
            settings,
            dtype=options.get("dtype", "float32"),
            batch_size=cfg.val_dataloader.batch_size,
            num_workers=cfg.val_dataloader.get("num_workers", 0),
            collate_fn=FUNCTIONS.get("default_collate"),
        )
    )


def _innermost(dataset: Any) -> Any:
    while isinstance(dataset.get("dataset"), dict):
        dataset = dataset["dataset"]
    return dataset


def knn_row(cfg: Config) -> Row:
    """k-NN on what the first linear head of a configuration is given, as a row of ``COLUMNS``.

    Features are of images transformed as for validation, and are kept as cached ones are.

    Raises:
        ConfigError: If no head is linear.
    """
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "visattn")):
        linear = {
            name: head
            for name, head in cfg.model.heads.items()
            if head.get("pooling", name) in ("cls", "gap", "pos")
        }
        if not linear:
            raise ConfigError(
                "probing.knn takes the features of a linear head, and there is none: add one to "
                "model.heads, such as linear=dict(pooling='cls')"
            )
        name, head = next(iter(linear.items()))
        model_cfg = copy.deepcopy(cfg.model)
        model_cfg.heads, model_cfg.lrs = {name: head}, None
        model = MODELS.build(model_cfg).eval()
        name = next(iter(model.specs))
        layer = model.layer_of[name]
        parts = [FeatureDataset(_features(cfg, model, part)) for part in ("train", "val")]
        pooled = [
            model.head(name).pooling(torch.from_numpy(np.array(part.features[str(layer)])).float())
            for part in parts
        ]
        labels = [torch.from_numpy(part.labels).long() for part in parts]
        k, temperature, accuracy = best_knn(
            knn_accuracy(pooled[0], labels[0], pooled[1], labels[1])
        )
    logger.info("k-NN: %.2f with k=%d, T=%g", accuracy, k, temperature)
    row = dict.fromkeys(COLUMNS)
    return {
        **row,
        "head": f"k-NN (k={k}, T={temperature:g})",
        "pooling": model.specs[name].pooling,
        "tokens": model.head(name).tokens,
        "layer": layer,
        "parameters": 0,
        "top1": accuracy,
        "last_top1": accuracy,
    }


def validation_images(cfg: Config, count: int) -> torch.Tensor:
    """Images (count, 3, H, W) of bytes, spread over the validation data."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "visattn")):
        dataset = DATASETS.build(copy.deepcopy(cfg.val_dataloader.dataset))
    places = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long().tolist()
    return torch.stack([dataset[place]["inputs"] for place in places])


def head_rows(runner: Runner, batch_size: int = 32) -> list[Row]:
    """What is to be told of each trained head, as rows of ``COLUMNS``.

    ``top1`` is the best of all validations, as the published figures are, ``epoch`` its epoch, and
    ``last_top1`` that of the last. ``step_ms`` is the median time of a training step of the head
    alone, on features that are there.
    """
    model, rows = runner.bare_model, []
    seconds = time_heads(runner, batch_size)
    interval = runner.train_loop.val_interval
    lr = runner.cfg.optim_wrapper.optimizer.lr
    for name, spec in model.specs.items():
        history = runner.message_hub.get_scalar(f"val/probe/{name}/top1").data[0]
        rows.append(
            {
                "head": name,
                "pooling": spec.pooling,
                "tokens": model.head(name).tokens,
                "layer": model.layer_of[name],
                "lr": lr if spec.lr is None else spec.lr,
                "seed": runner.seed,
                "parameters": sum(p.numel() for p in model.head(name).parameters()),
                "top1": float(history.max()),
                "epoch": int(history.argmax() + 1) * interval,
                "last_top1": float(history[-1]),
                "step_ms": 1e3 * percentiles(seconds[name]).p50,
            }
        )
    return rows


def time_heads(runner: Runner, batch_size: int) -> dict[str, list[float]]:
    """Seconds of training steps of each head alone, forward and backward, by name."""
    model = runner.bare_model
    loader = runner.val_loop.dataloader
    samples = [loader.dataset[i % len(loader.dataset)] for i in range(batch_size)]
    batch = model.data_preprocessor(FUNCTIONS.get("default_collate")(samples))
    with torch.no_grad():
        read = batch["features"] if "features" in batch else model.reader(batch["inputs"])
    tokens = {int(layer): x for layer, x in read.items()}
    was_training, buffers = model.training, copy.deepcopy(dict(model.heads.named_buffers()))
    model.train()

    def step_of(name: str) -> Any:
        head, x = model.head(name), model.tokens_for(name, tokens).contiguous()

        def step() -> None:
            loss = torch.nn.functional.cross_entropy(head(x), batch["labels"])
            torch.autograd.grad(loss, list(head.parameters()))

        return step

    steps = {name: step_of(name) for name in model.specs}
    device = next(iter(tokens.values())).device
    seconds = time_side_by_side(steps, device, warmup=1, iters=10, min_time=0.0, max_time=1.0)
    # Statistics of batch norms moved.
    model.heads.load_state_dict(buffers, strict=False)
    model.train(was_training)
    return seconds
