"""Trains what a configuration describes.

python tools/train.py configs/classification/biformer/biformer-micro_embedded.py
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visattn.tools._cli import run


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configuration file")
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/<config name>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="PATH",
        help="continue from the last checkpoint of the work folder, if any, or from PATH",
    )
    parser.add_argument(
        "--amp",
        choices=("bf16", "fp16", "none"),
        help="mixed precision; none turns off that of the recipe, as a CPU may want",
    )
    parser.add_argument("--compile", action="store_true", help="compile the backbone")
    parser.add_argument("--seed", type=int, help="seed of all randomness")
    parser.add_argument("--device", choices=("cpu",), help="stay off the GPU")
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="override values, as in train_dataloader.batch_size=4",
    )
    return parser.parse_args(argv)


def train(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises what goes wrong."""
    args = parse_args(argv)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from visattn.zoo.config import load_config
    from visattn.zoo.training.runner import build_runner

    cfg = load_config(args.config, args.cfg_options)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}"
    cfg.launcher = args.launcher
    if args.amp:
        set_precision(cfg.optim_wrapper, args.amp)
    if args.compile:
        cfg.compile = True
    if args.seed is not None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": args.seed}
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    build_runner(cfg).train()


def set_precision(wrapper: dict[str, Any], amp: str) -> None:
    """Sets the precision of an optimiser wrapper: ``"bf16"``, ``"fp16"``, or in full ``"none"``."""
    for key in ("dtype", "loss_scale"):
        wrapper.pop(key, None)
    if amp == "none":
        wrapper["type"] = "OptimWrapper"
    else:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[amp]
        wrapper.update(type="AutocastOptimWrapper", dtype=dtype)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(train, argv)


if __name__ == "__main__":
    sys.exit(main())
