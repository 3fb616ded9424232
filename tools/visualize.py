"""Draws what a model's attention looks at from a pixel of an image.

For BiFormer the regions that the query is routed to; for Agent Attention what its agents gather and
who hears them; for NAT and DiNAT the neighborhood; for ELA the gates; for DCAL the rollout; and the
attention of all other layers, those of timm's Vision Transformers too.

python tools/visualize.py biformer_tiny photo.jpg --checkpoint FILE --query 120,80
python tools/visualize.py CONFIG.py digit.png --checkpoint work_dirs/demo/epoch_20.pth

Of re-identification it draws ranked lists, as tools/test.py --out lists.json writes them: queries,
what DCAL's global-local cross-attention selects on them, and what was found, framed in green where
it is right and in red where it is wrong.

python tools/visualize.py CONFIG.py lists.json --checkpoint work_dirs/NAME/epoch_60.pth --out DIR
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.utils import ParseKwargs
from torch import nn

import visattn  # noqa: F401
from visattn.tools._cli import run
from visattn.zoo.attention import (
    AttentionMap,
    RoutingMap,
    attention_layers,
    attention_maps,
    plot_attention,
)
from visattn.zoo.checkpoint import load_checkpoint
from visattn.zoo.data.classification import read_image
from visattn.zoo.errors import UserError


def build_model(
    name: str, checkpoint: str | None = None, model_kwargs: dict[str, Any] | None = None
) -> nn.Module:
    """Builds a timm model by name, or the one of a classification config, in eval mode.

    The classifier of a checkpoint may differ; attention does not depend on it.

    Raises:
        UserError: If there is no such model.
        CheckpointError: If the checkpoint does not fit.
    """
    kwargs = dict(model_kwargs or {})
    heads = []
    if name.endswith(".py"):
        from visattn.zoo.config import load_config

        cfg = load_config(name)
        if cfg.model.type not in ("ImageClassifier", "ReIdentifier"):
            raise UserError(
                f"{name} describes a {cfg.model.type}, not an ImageClassifier or ReIdentifier: "
                "give the name of its backbone, with --model-kwargs"
            )
        backbone = cfg.model.backbone.to_dict()
        if cfg.model.type == "ReIdentifier":
            backbone["num_classes"], heads = 0, ["head.", "glca_head."]
        name, kwargs = backbone.pop("model_name"), {**backbone, **kwargs}
    elif not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), 3) or ["see timm.list_models()"]
        raise UserError(f"there is no model {name!r}; near it: {', '.join(near)}")
    model = timm.create_model(name, **kwargs).eval()
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, ignore=[model.pretrained_cfg["classifier"], *heads])
    return model


def resize(image: Image.Image, side: int, multiple: int = 32) -> Image.Image:
    """Resizes the shorter side of an image to ``side``, both sides to multiples of ``multiple``.

    Raises:
        UserError: If ``side`` is less than ``multiple``.
    """
    if side < multiple:
        raise UserError(f"--img-size must be at least {multiple}, the model's stride; got {side}")
    scale = side / min(image.size)
    size = [max(1, round(length * scale / multiple)) * multiple for length in image.size]
    return image.resize(size, Image.Resampling.BICUBIC)


def normalise(image: Image.Image, model: nn.Module) -> torch.Tensor:
    """An image as a model's input, (1, 3, H, W)."""
    mean, std = (np.array(model.pretrained_cfg[key], np.float32) for key in ("mean", "std"))
    pixels = (np.asarray(image, np.float32) / 255 - mean) / std
    return torch.from_numpy(pixels.transpose(2, 0, 1))[None]


def choose_layers(
    model: nn.Module, stages: list[int] | None, layers: list[str] | None
) -> list[str] | None:
    """Layers by name, or the last ones of given stages, counted from 1; None for all stages."""
    if layers or not stages:
        return layers
    names = [name for name in attention_layers(model) if name.startswith("stages.")]
    by_stage = {int(name.split(".")[1]) + 1: name for name in names}
    missing = [stage for stage in stages if stage not in by_stage]
    if missing:
        raise UserError(
            f"stage {missing[0]} has no attention to show: choose among "
            f"{', '.join(map(str, by_stage)) or 'layers, with --layers'}"
        )
    return [by_stage[stage] for stage in stages]


def parse_query(text: str) -> tuple[float, float]:
    """``"X,Y"`` as two numbers."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y, such as 120,80") from None
    return x, y


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="timm's name of the model, or a classification config (.py)")
    parser.add_argument("image", help="image file, or ranked lists of re-identification (.json)")
    parser.add_argument("--checkpoint", help="weights, in the authors' layout or ours")
    parser.add_argument(
        "--query", type=parse_query, metavar="X,Y", help="pixel of the file (default: its centre)"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--stage", type=int, nargs="+", help="stages, from 1 (default: all)")
    chosen.add_argument("--layers", nargs="+", help="layers, such as stages.2.blocks.0.attn")
    parser.add_argument("--img-size", type=int, help="shorter side (default: the model's)")
    parser.add_argument(
        "--model-kwargs", nargs="+", default={}, action=ParseKwargs, metavar="KEY=VALUE"
    )
    parser.add_argument(
        "--out", help="file to write, or folder of ranked lists (default: attention.png, rankings)"
    )
    lists = parser.add_argument_group("ranked lists")
    lists.add_argument("--count", type=int, default=10, help="how many found (default: 10)")
    lists.add_argument("--limit", type=int, default=100, help="most queries (default: 100)")
    return parser.parse_args(argv)


def visualize(argv: Sequence[str] | None = None) -> None:
    """Runs the command; raises what goes wrong."""
    args = parse_args(argv)
    if args.image.endswith(".json"):
        _visualize_rankings(args)
    else:
        _visualize_attention(args)


def _visualize_rankings(args: argparse.Namespace) -> None:
    from visattn.zoo.config import load_config
    from visattn.zoo.inference.predictors import image_pipeline, load_weights
    from visattn.zoo.models import build_configured
    from visattn.zoo.reid.drawing import draw_rankings, patch_selector, read_rankings

    queries = read_rankings(args.image)
    cfg = load_config(args.model)
    if cfg.model.type != "ReIdentifier":
        raise UserError(
            f"{args.model} describes a {cfg.model.type}; ranked lists are of a ReIdentifier"
        )
    selected = None
    if args.checkpoint is None:
        print("no --checkpoint: what DCAL selects is not shown")
    else:
        model = build_configured(cfg)
        load_weights(model, args.checkpoint)
        selected = patch_selector(model, image_pipeline(cfg))
    drawn = draw_rankings(queries, args.out or "rankings", args.count, args.limit, selected)
    print(f"{len(drawn)} of {len(queries)} queries drawn in {args.out or 'rankings'}")


def _visualize_attention(args: argparse.Namespace) -> None:
    out = Path(args.out or "attention.png")
    model = build_model(args.model, args.checkpoint, args.model_kwargs)
    original = read_image(args.image)
    image = resize(original, args.img_size or model.pretrained_cfg["input_size"][-1])
    x, y = args.query or (original.width / 2, original.height / 2)
    x, y = x * image.width / original.width, y * image.height / original.height
    layers = choose_layers(model, args.stage, args.layers)
    try:
        maps = attention_maps(model, normalise(image, model), layers)
    except AssertionError as error:
        raise UserError(
            f"{args.model} does not take an image of {image.width} x {image.height} pixels "
            f"({error}): for timm's models give --model-kwargs dynamic_img_size=True"
        ) from None
    title = f"{Path(args.model).stem}, {Path(args.image).name}"
    figure = plot_attention(np.asarray(image), maps, (y, x), title)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    if args.checkpoint is None:
        print("no --checkpoint: this is the attention of random weights")
    for name, attention in maps.items():
        print(f"{name}: {_describe(attention, y, x)}")
    print(f"written to {out}")


def _describe(attention: AttentionMap, y: float, x: float) -> str:
    if isinstance(attention, RoutingMap):
        region = attention.region_at(y, x)
        return f"region {region} looks at {sorted(attention.indices[region].tolist())}"
    peaks = []
    for title, heat in attention.panels(y, x).items():
        row, column = divmod(int(heat.argmax()), heat.shape[1])
        peaks.append(f"{title} is strongest at row {row}, column {column} of {tuple(heat.shape)}")
    return "; ".join(peaks)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(visualize, argv)


if __name__ == "__main__":
    sys.exit(main())
