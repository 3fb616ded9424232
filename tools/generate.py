"""Draws pictures from a JSON of prompts and boxes, with any Stable Diffusion.

python tools/generate.py layouts.json --model MODEL --method plain --out DIR
python tools/generate.py layouts.json --model MODEL --method roictrl --roictrl FILE --out DIR
python tools/generate.py layouts.json --model MODEL --method masked --agent-sd 0.4 --out DIR

The JSON is a list of records; only "prompt", "bbox" and "caption" are needed:
  {"name": "desk", "prompt": "a desk", "negative_prompt": "blurry", "seed": 7,
   "instances": [{"bbox": [0.1, 0.2, 0.5, 0.9], "caption": "a red cup"}]}
Boxes are left, top, right, bottom in shares of the picture, or with "pixels": true in pixels of its
"width" and "height". What is in DIR already is not drawn again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from visattn.tools._cli import run

DTYPES = ("fp32", "fp16", "bf16")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("layouts", type=Path, metavar="JSON", help="prompts and boxes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    add_model_arguments(parser)
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[], help="default: the records' own"
    )
    parser.add_argument("--steps", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=7.5, help="default: %(default)s")
    parser.add_argument("--negative-prompt", default="", help="of records that have none")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("W", "H"), help="of records that have none"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at once (default: 1)")
    parser.add_argument("--beta", type=float, help="share of the steps in which boxes are used")
    parser.add_argument(
        "--agent-sd",
        nargs="?",
        type=float,
        const=0.4,
        metavar="RATIO",
        help="AgentSD, merging this share of tokens (0.4 if not said)",
    )
    parser.add_argument("--no-pictures", action="store_true", help="nothing side by side")
    return parser.parse_args(argv)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what draws."""
    parser.add_argument(
        "--model", required=True, help="folder or name of a pipeline, or one file of weights"
    )
    parser.add_argument(
        "--method",
        choices=("roictrl", "masked", "gligen", "plain"),
        help="default: roictrl if its weights are given, else plain",
    )
    parser.add_argument("--roictrl", metavar="FILE", help="weights of ROICtrl")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the accelerator if any)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp32 on the CPU, else fp16")


def load(args: argparse.Namespace) -> tuple[object, str]:
    """The pipeline that the arguments name, and its method."""
    import torch

    from visattn.zoo.devices import pick_device
    from visattn.zoo.diffusion.generation import load_pipeline

    device = pick_device(args.device)
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    dtype = dtypes[args.dtype or ("fp32" if device.type == "cpu" else "fp16")]
    method = args.method or ("roictrl" if args.roictrl else "plain")
    return load_pipeline(method, args.model, args.roictrl, device, dtype), method


def generate(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises what goes wrong."""
    args = parse_args(argv)
    from visattn.zoo.diffusion import generation
    from visattn.zoo.diffusion.layouts import read_layouts

    layouts = read_layouts(args.layouts)
    width, height = args.size or (None, None)
    settings = generation.Settings(
        steps=args.steps,
        guidance_scale=args.guidance,
        negative_prompt=args.negative_prompt,
        width=width,
        height=height,
        beta=args.beta,
        agent_sd=args.agent_sd,
    )
    pipeline, method = load(args)
    entries = generation.generate(
        pipeline,
        method,
        layouts,
        args.out,
        settings,
        args.seeds,
        args.batch_size,
        {"model": args.model, "roictrl": args.roictrl},
        not args.no_pictures,
    )
    for entry in entries:
        print(f"{args.out / entry['image']}{'' if entry['new'] else ' was there'}", flush=True)
    print(f"written to {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(generate, argv)


if __name__ == "__main__":
    sys.exit(main())
