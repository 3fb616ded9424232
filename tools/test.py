"""Evaluates a checkpoint on the test data of a configuration.

python tools/test.py CONFIG CHECKPOINT --out predictions.json
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
    parser.add_argument("checkpoint", help="checkpoint of a run, or the authors' of a classifier")
    parser.add_argument("--work-dir", help="output folder (default: work_dirs/<config name>)")
    parser.add_argument(
        "--out", help="write predictions: .json (classification) or .pkl (any task, as mmengine's)"
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
    from visattn.zoo.config import load_config
    from visattn.zoo.errors import ConfigError
    from visattn.zoo.training.runner import build_runner

    cfg = load_config(args.config, args.cfg_options)
    if cfg.get("test_dataloader") is None:
        raise ConfigError(f"{args.config} has no test_dataloader: nothing to test on")
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}"
    cfg.launcher = args.launcher
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.out:
        dumps = {
            ".json": {"type": "DumpClassification", "out_file": args.out},
            ".pkl": {"type": "DumpResults", "out_file_path": args.out},
        }
        if Path(args.out).suffix not in dumps:
            raise ConfigError(f"--out {args.out} must end with .json or .pkl")
        evaluators = cfg.test_evaluator
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        cfg.test_evaluator = [*evaluators, dumps[Path(args.out).suffix]]
    return build_runner(cfg, mode="test").test()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(evaluate, argv)


if __name__ == "__main__":
    sys.exit(main())
