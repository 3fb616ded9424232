"""Evaluates a checkpoint on the test data of a configuration.

python tools/test.py CONFIG CHECKPOINT --out predictions.json
python tools/test.py CONFIG CHECKPOINT --report DIR --show-dir DIR/pictures --tta
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from visattn.tools._cli import run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configuration file")
    parser.add_argument("checkpoint", help="checkpoint of a run, or the authors'")
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/<config name>)")
    parser.add_argument(
        "--out",
        help="write predictions: .pkl (any task, as mmengine's), .json (classification; detection, "
        "as COCO's; re-identification, as ranked lists) or a folder (segmentation, as PNG)",
    )
    parser.add_argument(
        "--report", metavar="DIR", help="write a table of the classes and what is taken for what"
    )
    parser.add_argument(
        "--show-dir",
        metavar="DIR",
        help="draw predictions beside the annotations, on the images; of re-identification queries "
        "and what was found",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="least score of an instance in --report and --show-dir (default: %(default)s)",
    )
    parser.add_argument(
        "--tta", action="store_true", help="augment images by the configuration's tta_pipeline"
    )
    parser.add_argument("--device", choices=("cpu",), help="stay off the GPU")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    return parser.parse_args(argv)


def evaluate(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the command and returns the metrics; raises what goes wrong."""
    args = parse_args(argv)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from mmengine.dist import is_main_process

    from visattn.zoo.config import load_config
    from visattn.zoo.errors import ConfigError
    from visattn.zoo.testing import (
        add_dump,
        add_report,
        drawing_hook,
        use_augmentation,
        write_report,
    )
    from visattn.zoo.training.runner import build_runner

    cfg = load_config(args.config, args.cfg_options)
    if cfg.get("test_dataloader") is None:
        raise ConfigError(f"{args.config} has no test_dataloader: nothing to test on")
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}"
    cfg.launcher = args.launcher
    cfg.load_from, cfg.resume = args.checkpoint, False
    hooks = [use_augmentation(cfg)] if args.tta else []
    if args.out:
        add_dump(cfg, args.out)
    if args.report:
        add_report(cfg, args.report, args.score_threshold)
    if args.show_dir:
        hooks.append(drawing_hook(cfg, args.show_dir, args.score_threshold))
    runner = build_runner(cfg, mode="test")
    for hook in hooks:
        runner.register_hook(hook)
    metrics = runner.test()
    if args.report and is_main_process():
        write_report(cfg, args.report)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
