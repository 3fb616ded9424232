"""Exports a model to ONNX or torch.export, with dynamic batch and size, and checks the result.

python tools/export.py biformer_tiny --checkpoint FILE --out biformer_tiny.onnx
python tools/export.py biformer_tiny --format both --out exported/biformer_tiny
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from timm.utils import ParseKwargs

from visattn.tools._cli import run
from visattn.tools.benchmark import positive, size
from visattn.zoo.checkpoint import load_checkpoint
from visattn.zoo.export import MIN_SIZE, export_onnx, export_torch, trace
from visattn.zoo.models import build_model, input_size

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="name of the model, timm/NAME too")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: random)")
    parser.add_argument("--format", choices=(*SUFFIXES, "both"), help="default: by --out's suffix")
    parser.add_argument(
        "--out", type=Path, required=True, help="file; the suffix .onnx or .pt2 may be left out"
    )
    parser.add_argument("--img-size", type=size, metavar="SIDE[,SIDE]", help="traced height,width")
    parser.add_argument("--batch-size", type=positive, default=2, help="traced batch")
    parser.add_argument("--static", action="store_true", help="fix batch and size as traced")
    parser.add_argument(
        "--min-size",
        type=positive,
        default=MIN_SIZE,
        help="least side (default: %(default)s; many models of stride 32 take 33)",
    )
    parser.add_argument("--opset", type=positive, help="version of ONNX's operators")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative, of the check")
    parser.add_argument(
        "--model-kwargs", nargs="+", default={}, action=ParseKwargs, metavar="KEY=VALUE"
    )
    return parser.parse_args(argv)


def export(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises what goes wrong."""
    args = parse_args(argv)
    by_suffix = {suffix: name for name, suffix in SUFFIXES.items()}
    chosen = args.format or by_suffix.get(args.out.suffix, "onnx")
    stem = args.out.with_suffix("") if args.out.suffix in by_suffix else args.out

    model = build_model(args.model, args.img_size, **args.model_kwargs).eval()
    if args.checkpoint:
        load_checkpoint(model, args.checkpoint)
    else:
        print("no --checkpoint: the weights are random", file=sys.stderr)
    height, width = args.img_size or input_size(model)
    channels = model.pretrained_cfg["input_size"][0]
    if args.static:
        traced = unseen = (args.batch_size, channels, height, width)
    else:
        # A batch of 1, or one as large as a side, would be taken for a constant.
        traced = (max(args.batch_size, 2), channels, height, width + 32)
        unseen = (traced[0] + 1, channels, height + 25, width + 3)
    program = trace(model, traced, dynamic=not args.static, min_size=args.min_size)
    for name in SUFFIXES if chosen == "both" else (chosen,):
        path = stem.with_name(stem.name + SUFFIXES[name])
        if name == "onnx":
            error = export_onnx(program, path, model, unseen, args.tolerance, args.opset)
        else:
            error = export_torch(program, path, model, unseen, args.tolerance)
        where = "the traced size" if args.static else "a size that was not traced"
        print(
            f"{path} ({path.stat().st_size / 2**20:.1f} MiB): relative difference from eager "
            f"{error:.1e} on {' x '.join(map(str, unseen))}, {where}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(export, argv)


if __name__ == "__main__":
    sys.exit(main())
