"""Trains configurations over seeds, and prints means and deviations of their figures.

python tools/seeds.py configs/reid/baseline/vit-micro_embedded.py \\
    configs/reid/dcal/dcal-micro_embedded.py --seeds 0 1 2

Runs go to ``WORK_DIR/<configuration>/seed<N>``. Those that are finished are not run again, and
those that broke off continue. ``python -m visattn.zoo.results`` puts the table of ``--out FILE``
between ``<!-- seeds:FILE -->`` and ``<!-- /results -->`` of a Markdown file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from visattn.tools._cli import run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configuration files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument(
        "--metrics", nargs="+", metavar="NAME", help="figures of the table (default: all)"
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path("work_dirs"), help="folder of the runs' folders"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV file of the table's figures")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override values, of all configurations",
    )
    return parser.parse_args(argv)


def compare(argv: Sequence[str] | None = None) -> dict[str, dict[int, dict[str, float]]]:
    """Runs the command and returns metrics by configuration and seed; raises what goes wrong."""
    args = parse_args(argv)
    from visattn.zoo.seeds import table, train_seed, write_rows

    results: dict[str, dict[int, dict[str, float]]] = {Path(c).stem: {} for c in args.configs}
    # Seed by seed: what is broken off has compared all configurations on some.
    for seed in args.seeds:
        for config in args.configs:
            name = Path(config).stem
            folder = args.work_dir / name / f"seed{seed}"
            results[name][seed] = train_seed(config, seed, folder, args.cfg_options)
    print(
        table({name: list(runs.values()) for name, runs in results.items()}, args.metrics), end=""
    )
    if args.out:
        write_rows(results, args.out, args.metrics)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(compare, argv)


if __name__ == "__main__":
    sys.exit(main())
