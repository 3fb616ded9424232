"""Configurations trained with several seeds, and what comes of them."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import load_config
from .errors import UserError
from .training.prompting import TEST_RESULTS
from .training.runner import build_runner

__all__ = ["table", "train_seed"]

_FINAL = "final.json"


def train_seed(
    config: str | Path, seed: int, folder: str | Path, overrides: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Trains a configuration with a seed, unless that is done; a run that broke off is continued.

    Args:
        config: Configuration file.
        seed: Seed of all randomness.
        folder: Folder of the run.
        overrides: New values by dotted name; see ``visattn.zoo.config.load_config``.

    Returns:
        Metrics by name: of the last weights on the test set where there is a ``FinalTestHook``, and
        behind ``best_on_val/`` those of the weights it chose; otherwise of the last validation.

    Raises:
        UserError: If the configuration validates nothing.
    """
    folder = Path(folder)
    if (folder / _FINAL).is_file():
        return json.loads((folder / _FINAL).read_text())
    cfg = load_config(config, overrides)
    if cfg.get("val_dataloader") is None:
        raise UserError(f"{config} has no val_dataloader: there is nothing to compare")
    cfg.work_dir, cfg.resume = str(folder), True
    # mmengine keeps the state of a run under its name.
    cfg.experiment_name = f"{Path(config).stem}_{folder.resolve()}".replace("/", "_")
    cfg.randomness = {**cfg.get("randomness", {}), "seed": seed}
    runner = build_runner(cfg)
    runner.train()
    if (folder / TEST_RESULTS).is_file():
        results = json.loads((folder / TEST_RESULTS).read_text())
        best = {f"best_on_val/{k}": v for k, v in results.get("best_on_val", {}).items()}
        metrics = {**results["last"], **best}
    else:
        metrics = {key: float(value) for key, value in runner.val_loop.run().items()}
    (folder / _FINAL).write_text(json.dumps(metrics))
    return metrics


def table(
    results: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str] | None = None
) -> str:
    """A Markdown table of the mean and the sample deviation of each metric.

    Args:
        results: Metrics of each seed, by configuration.
        names: Metrics to show; all by default.
    """
    if names is None:
        names = list(dict.fromkeys(key for runs in results.values() for run in runs for key in run))
    rows = [["", "seeds", *names], ["---", "---:", *("---:" for _ in names)]]
    for name, runs in results.items():
        cells = []
        for metric in names:
            values = [run[metric] for run in runs if metric in run]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}" if values else "")
        rows.append([name, str(len(runs)), *cells])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)
