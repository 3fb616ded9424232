"""Converts the authors' checkpoint of a model into this package's layout, strictly.

python tools/convert.py biformer_tiny.pth biformer_tiny.safetensors --model biformer_tiny
python tools/convert.py biformer_tiny.pth --model biformer_tiny --dry-run
python tools/convert.py detector.pth ours.pth --model configs/detection/nat/CONFIG.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.utils import ParseKwargs
from torch import nn

from visattn.tools._cli import run
from visattn.zoo.checkpoint import CheckpointError, LoadReport, load_checkpoint
from visattn.zoo.errors import UserError
from visattn.zoo.files import replacing
from visattn.zoo.models import build_configured, build_model, is_config

SUFFIXES = (".safetensors", ".pth")


def save_weights(
    state_dict: dict[str, torch.Tensor], path: str | Path, meta: dict[str, Any] | None = None
) -> None:
    """Writes a state dict as ``.safetensors`` or ``.pth``; what was there survives a failure.

    Args:
        state_dict: Weights.
        path: File to write.
        meta: What a ``.pth`` file of a detector or segmentor has under ``"meta"``.

    Raises:
        UserError: If it cannot be written.
    """
    with replacing(path) as temporary:
        if temporary.suffix == ".safetensors":
            from safetensors.torch import save_file

            tensors = {name: value.contiguous() for name, value in state_dict.items()}
            save_file(tensors, temporary, metadata={"format": "pt"})
        else:
            torch.save(
                state_dict if meta is None else {"meta": meta, "state_dict": state_dict}, temporary
            )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("src", type=Path, help="checkpoint as released, .pth or .safetensors")
    parser.add_argument("dst", type=Path, nargs="?", help=f"file to write, {' or '.join(SUFFIXES)}")
    parser.add_argument(
        "--model",
        required=True,
        help="name of the model it is of, or configuration of a detector or segmentor",
    )
    parser.add_argument("--num-classes", type=int, help="classes it was trained for")
    parser.add_argument(
        "--model-kwargs", nargs="+", default={}, action=ParseKwargs, metavar="KEY=VALUE"
    )
    parser.add_argument("--dry-run", action="store_true", help="only report what matches")
    parser.add_argument("--force", action="store_true", help="overwrite DST")
    return parser.parse_args(argv)


def convert(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises what goes wrong."""
    args = parse_args(argv)
    if not args.dry_run:
        _check_destination(args)
    model, meta, report = (_load_dense if is_config(args.model) else _load)(args)
    print(f"{args.src} as {args.model}: {report}")
    if not report.is_whole:
        written = "" if args.dry_run else "; nothing was written"
        classes = "num_classes of its heads" if is_config(args.model) else "--num-classes"
        raise CheckpointError(
            f"{args.src} does not fit {args.model}{written}: is it of another variant, or of "
            f"another number of classes ({classes})?"
        )
    if not args.dry_run:
        save_weights(model.state_dict(), args.dst, meta)
        print(f"written to {args.dst}")


def _load(args: argparse.Namespace) -> tuple[nn.Module, None, LoadReport]:
    kwargs = dict(args.model_kwargs)
    if args.num_classes is not None:
        kwargs["num_classes"] = args.num_classes
    model = build_model(args.model, **kwargs)
    return model, None, load_checkpoint(model, args.src, strict=False)


def _load_dense(args: argparse.Namespace) -> tuple[nn.Module, dict[str, Any], LoadReport]:
    if args.num_classes is not None or args.model_kwargs:
        raise UserError("--num-classes and --model-kwargs are for names: edit the configuration")
    from visattn.zoo.config import load_config
    from visattn.zoo.openmm.convert import is_dense, load_dense_checkpoint, read_dataset_meta

    model = build_configured(load_config(args.model))
    if not is_dense(model):
        raise UserError(
            f"{args.model} is of a {type(model).__name__}, neither detector nor segmentor: "
            "give the name of the model as --model"
        )
    report = load_dense_checkpoint(model, args.src, strict=False)
    return model, {"dataset_meta": read_dataset_meta(args.src)}, report


def _check_destination(args: argparse.Namespace) -> None:
    if args.dst is None:
        raise UserError("give DST, the file to write, or --dry-run")
    if args.dst.suffix not in SUFFIXES:
        raise UserError(f"DST must end in {' or '.join(SUFFIXES)}; got {args.dst}")
    if args.dst.exists() and (args.src.exists() and args.dst.samefile(args.src)):
        raise UserError(f"DST is SRC ({args.src}): name another file")
    if args.dst.exists() and not args.force:
        raise UserError(f"{args.dst} exists: pass --force to overwrite it")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(convert, argv)


if __name__ == "__main__":
    sys.exit(main())
