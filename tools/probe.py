"""Probes a frozen network: trains heads side by side, and tells accuracy, parameters and time.

python tools/probe.py configs/probing/vit/vit-micro_embedded.py --seeds 0 1 2
python tools/probe.py CONFIG --cached --cfg-options model.checkpoint=mae_pretrain_vit_base.pth
"""

import argparse
import os
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from visattn.tools._cli import run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="configuration of a Probe")
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/<config name>)")
    parser.add_argument(
        "--cached",
        action="store_true",
        help="train on features that are read once and kept, without augmentation",
    )
    parser.add_argument("--knn", action="store_true", help="classify by nearest neighbours, too")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="one run for each")
    parser.add_argument(
        "--maps", type=int, default=4, metavar="N", help="images to draw queries on (default: 4)"
    )
    parser.add_argument("--device", choices=("cpu",), help="stay off the GPU")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override values, as in model.heads.ep.num_queries=64",
    )
    return parser.parse_args(argv)


def probe(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises what goes wrong."""
    args = parse_args(argv)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from visattn.zoo.config import load_config
    from visattn.zoo.probing.report import draw_queries, plot, print_rows
    from visattn.zoo.probing.runs import run_probe, validation_images
    from visattn.zoo.probing.summary import SUMMARY, summarize, write_rows

    cfg = load_config(args.config, args.cfg_options)
    folder = Path(args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}")
    options = dict(cfg.get("probing") or {})
    cfg.probing = {
        **options,
        "cached": args.cached or options.get("cached", False),
        "knn": args.knn or options.get("knn", False),
    }
    rows = []
    for seed in args.seeds or [cfg.get("randomness", {}).get("seed", 0)]:
        own = deepcopy(cfg)
        own.randomness = {**own.get("randomness", {}), "seed": seed}
        own.work_dir = str(folder / f"seed{seed}" if args.seeds else folder)
        # mmengine keeps the state of a run under its name.
        own.experiment_name = f"{Path(args.config).stem}_{folder.name}_seed{seed}"
        runner, found = run_probe(own)
        rows += found
        write_rows(rows, folder / "heads.csv")
    summary = summarize(rows)
    write_rows(summary, folder / "summary.csv", SUMMARY)
    plot(summary, folder / "accuracy.png")
    written = [folder / "summary.csv", folder / "accuracy.png"]
    if args.maps:
        images = validation_images(cfg, args.maps)
        written += draw_queries(runner.bare_model, images, folder / "queries")
    print_rows(summary, Path(args.config).stem)
    print(f"written: {', '.join(map(str, written))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(probe, argv)


if __name__ == "__main__":
    sys.exit(main())
