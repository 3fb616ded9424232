"""Configurations trained with several seeds, and what comes of them."""

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import replacing

__all__ = ["seeds_table", "table", "train_seed", "write_rows"]

COLUMNS = ("config", "seed", "metric", "value")

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
    from .config import load_config
    from .training.prompting import TEST_RESULTS
    from .training.runner import build_runner

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


def write_rows(
    results: Mapping[str, Mapping[int, Mapping[str, float]]],
    path: str | Path,
    names: Sequence[str] | None = None,
) -> None:
    """Writes figures as CSV, a row each, in the place of a file of that name.

    Args:
        results: Metrics by configuration and seed.
        path: The file; ``seeds_table`` makes a table of it.
        names: Metrics to write; all by default.
    """
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for config, runs in results.items():
            for seed, metrics in runs.items():
                chosen = metrics if names is None else [name for name in names if name in metrics]
                writer.writerows((config, seed, name, metrics[name]) for name in chosen)


def seeds_table(path: Path) -> str:
    """A Markdown table of a CSV file of ``tools/seeds.py``; see ``table``.

    Raises:
        UserError: If there is no such file, or it has no such rows.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(column not in rows[0] for column in COLUMNS):
        raise UserError(f"{path} is no result of tools/seeds.py: it needs {', '.join(COLUMNS)}")
    results: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        runs = results.setdefault(row["config"], {})
        runs.setdefault(row["seed"], {})[row["metric"]] = float(row["value"])
    return table({f"`{config}`": list(runs.values()) for config, runs in results.items()})
