"""Trains configurations with several seeds, and compares them: ``python -m visattn.zoo.seeds``.

python -m visattn.zoo.seeds configs/reid/{baseline/vit,dcal/dcal}-micro_embedded.py --seeds 0 1 2

Runs go to ``WORK_DIR/<configuration>/seed<N>``. Those that are finished are not run again, and
those that broke off continue. The table has the mean and the standard deviation of each metric of
the last validation.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError
from .errors import UserError

__all__ = ["final_metrics", "table", "train_seed"]

_FINAL = "final.json"


def train_seed(
    config: str | Path, seed: int, folder: str | Path, overrides: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Trains a configuration with a seed, unless that is done.

    Args:
        config: Configuration file.
        seed: Seed of all randomness.
        folder: Folder of the run.
        overrides: New values by dotted name; see ``visattn.zoo.config.load_config``.

    Returns:
        The metrics of the last validation, by name.

    Raises:
        UserError: If the configuration validates nothing.
    """
    from .config import load_config
    from .training.runner import build_runner

    folder = Path(folder)
    if (folder / _FINAL).is_file():
        return final_metrics(folder)
    cfg = load_config(config, overrides)
    if cfg.get("val_dataloader") is None:
        raise UserError(f"{config} has no val_dataloader: there is nothing to compare")
    cfg.work_dir, cfg.resume = str(folder), True
    cfg.experiment_name = f"{Path(config).stem}_{folder.resolve()}".replace("/", "_")
    cfg.randomness = {**cfg.get("randomness", {}), "seed": seed}
    runner = build_runner(cfg)
    runner.train()
    metrics = {key: float(value) for key, value in runner.val_loop.run().items()}
    (folder / _FINAL).write_text(json.dumps(metrics))
    return metrics


def final_metrics(folder: str | Path) -> dict[str, float]:
    """Metrics of the last validation of a run that ``train_seed`` finished."""
    return json.loads((Path(folder) / _FINAL).read_text())


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A Markdown table of the mean and the standard deviation of each metric.

    Args:
        results: Metrics of each seed, by configuration.
    """
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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", help="configuration files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs"))
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    results: dict[str, list[dict[str, float]]] = {Path(config).stem: [] for config in args.configs}
    try:
        for seed in args.seeds:
            for config in args.configs:
                name = Path(config).stem
                folder = args.work_dir / name / f"seed{seed}"
                results[name].append(train_seed(config, seed, folder, args.cfg_options))
    except (UserError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
