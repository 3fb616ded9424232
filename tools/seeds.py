"""Trains configurations over seeds, and prints means and deviations of their test figures.

python tools/seeds.py configs/prompting/embedded/*.py --seeds 0 1 2 --metric accuracy/top1
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from visattn.tools._cli import run

TRAIN = Path(__file__).with_name("train.py")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", type=Path, help="configurations with FinalTestHook")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--metric", default="accuracy/top1", help="figure of the table (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        choices=("last", "best_on_val"),
        default="last",
        help="which weights' figures (default: %(default)s)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path("work_dirs"),
        help="folder of the runs' folders; what is there is not trained again",
    )
    parser.add_argument(
        "--train-args",
        nargs=argparse.REMAINDER,
        default=[],
        help="last of all: further arguments of train.py",
    )
    return parser.parse_args(argv)


def results_of(config: Path, seed: int, folder: Path, train_args: Sequence[str]) -> dict:
    """What ``FinalTestHook`` wrote of a run, which is trained first if there is none.

    Raises:
        UserError: If training fails, or leaves no figures.
    """
    from visattn.zoo.errors import UserError

    work_dir = folder / f"{config.stem}_seed{seed}"
    results = work_dir / "test_results.json"
    if not results.is_file():
        command = [sys.executable, str(TRAIN), str(config), "--work-dir", str(work_dir)]
        command += ["--seed", str(seed), "--resume", *train_args]
        code = subprocess.run(command, check=False).returncode
        if code:
            raise UserError(f"training {config} with seed {seed} failed with code {code}")
        if not results.is_file():
            raise UserError(
                f"{config} leaves no {results}: add custom_hooks = [dict(type='FinalTestHook')]"
            )
    return json.loads(results.read_text())


def table(figures: dict[str, list[float]], metric: str) -> str:
    """Means and sample deviations by configuration, as Markdown."""
    rows = [f"| Configuration | {metric} | Seeds |", "| --- | ---: | ---: |"]
    for name, values in figures.items():
        deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        rows.append(f"| `{name}` | {statistics.mean(values):.2f}{deviation} | {len(values)} |")
    return "\n".join(rows) + "\n"


def compare(argv: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Runs the command and returns figures by configuration; raises what goes wrong."""
    from visattn.zoo.errors import UserError

    args = parse_args(argv)
    figures: dict[str, list[float]] = {}
    # Seed by seed: what is broken off has compared all configurations on some.
    for seed in args.seeds:
        for config in args.configs:
            results = results_of(config, seed, args.work_dir, args.train_args)
            try:
                value = results[args.weights][args.metric]
            except KeyError as error:
                raise UserError(f"{config} has no {error}: it has {results}") from error
            figures.setdefault(config.stem, []).append(value)
        print(table(figures, args.metric), flush=True)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(compare, argv)


if __name__ == "__main__":
    sys.exit(main())
