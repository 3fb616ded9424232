"""Draws what the pipeline feeds a model: samples after augmentation, with their labels.

python tools/browse.py CONFIG --split train --number 16 --out samples.png
"""

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ImageDraw, ImageFont
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_segmentation_masks

from visattn.tools._cli import run

CELL = 320


class Sample(NamedTuple):
    """An image, bytes (3, H, W) with its annotations drawn, and what its title says."""

    image: torch.Tensor
    title: str


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configuration file")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--number", type=int, default=16, help="samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of order and augmentation")
    parser.add_argument(
        "--out", default="work_dirs/browse", help="PNG file, or folder (default: %(default)s)"
    )
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE")
    return parser.parse_args(argv)


def browse(argv: Sequence[str] | None = None) -> Path:
    """Runs the command and returns the file written; raises what goes wrong."""
    args = parse_args(argv)
    from mmengine.runner import Runner, set_random_seed

    from visattn.zoo.config import load_config
    from visattn.zoo.errors import ConfigError, DataError

    cfg = load_config(args.config, args.cfg_options)
    loader_cfg = cfg.get(f"{args.split}_dataloader")
    if loader_cfg is None:
        raise ConfigError(f"{args.config} has no {args.split}_dataloader: choose another --split")
    if args.number < 1:
        raise ConfigError(f"--number must be at least 1; got {args.number}")
    set_random_seed(args.seed)
    preprocess, mix = build_preprocessing(cfg)
    loader_cfg.update(num_workers=0, persistent_workers=False, drop_last=False)
    loader = Runner.build_dataloader(loader_cfg, seed=args.seed)
    metainfo = getattr(loader.dataset, "metainfo", None) or {}
    samples: list[Sample] = []
    for batch in loader:
        data = preprocess(batch, training=args.split == "train")
        images = denormalise(data["inputs"], preprocess)
        if "data_samples" in data:
            samples.extend(annotated(images, data["data_samples"], metainfo))
        else:
            mixing = mix if args.split == "train" else None
            samples.extend(labelled(images, data["labels"], metainfo.get("classes"), mixing))
        if len(samples) >= args.number:
            break
    if not samples:
        raise DataError(f"the {args.split} data of {args.config} gave no sample to draw")
    out = Path(args.out)
    if not out.suffix:
        out = out / f"{Path(args.config).stem}_{args.split}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    title = f"{Path(args.config).stem}: {args.split}, {len(loader.dataset):,} samples"
    draw_grid(samples[: args.number], title).savefig(out, dpi=120)
    print(f"written to {out}")
    return out


def build_preprocessing(cfg: Any) -> tuple[Any, Any]:
    """The model's data preprocessor, and its mixup where it has one."""
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(cfg.get("default_scope", "visattn"))
    if cfg.model.get("type") in ("ImageClassifier", "ReIdentifier"):
        backbone = {**cfg.model.backbone, "pretrained": False}
        model = MODELS.build({**cfg.model, "backbone": backbone, "checkpoint": None})
        return model.data_preprocessor, getattr(model, "mixup", None)
    return MODELS.build(cfg.model.data_preprocessor), None


def denormalise(inputs: torch.Tensor, preprocessor: Any) -> torch.Tensor:
    """Normalised images (B, 3, H, W) as RGB bytes."""
    if getattr(preprocessor, "_enable_normalize", True):
        inputs = inputs * preprocessor.std + preprocessor.mean
    # OpenMMLab's pipelines load BGR; its preprocessors turn that to RGB where they are told to.
    to_rgb = [getattr(preprocessor, n, None) for n in ("_channel_conversion", "channel_conversion")]
    if False in to_rgb:
        inputs = inputs.flip(1)
    return inputs.round().clamp(0, 255).to(torch.uint8)


def enlarge(image: torch.Tensor, mode: str = "bicubic") -> torch.Tensor:
    """An image (C, H, W), its longer side ``CELL`` pixels, in its own type."""
    scale = CELL / max(image.shape[-2:])
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    resized = F.interpolate(image[None].float(), size, mode=mode)[0]
    return resized.round().clamp(0, 255).to(image.dtype)


def labelled(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str] | None, mixup: Any
) -> Iterator[Sample]:
    """Samples of classification; mixed images name their classes with the weights."""
    if mixup is not None:
        images = images[: len(images) // 2 * 2]
        mixed, targets = mixup(images.float(), labels[: len(images)])
        images = mixed.round().clamp(0, 255).to(torch.uint8)
    for index, image in enumerate(images):
        if mixup is None:
            title = class_name(int(labels[index]), classes)
        else:
            # Smoothing gives every class the same small weight.
            weights = (targets[index] - targets[index].min()).cpu()
            weights = weights / weights.sum()
            chosen = [int(i) for i in weights.argsort(descending=True)[:2] if weights[i] > 1e-6]
            title = " + ".join(f"{class_name(i, classes)} {weights[i]:.0%}" for i in chosen)
        yield Sample(enlarge(image), title)


def annotated(
    images: torch.Tensor, data_samples: Sequence[Any], metainfo: dict[str, Any]
) -> Iterator[Sample]:
    """Samples of detection and segmentation, boxes and masks drawn on them."""
    classes, palette = metainfo.get("classes"), metainfo.get("palette")
    for image, sample in zip(images, data_samples, strict=True):
        scale = CELL / max(image.shape[-2:])
        image, title = enlarge(image), ""
        if "gt_sem_seg" in sample:
            image, title = with_semantic(image, sample.gt_sem_seg.data, classes, palette)
        if "gt_instances" in sample:
            image, title = with_instances(image, sample.gt_instances, scale, classes)
        yield Sample(image, title)


def with_semantic(
    image: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str] | None,
    palette: Sequence[Sequence[int]] | None,
) -> tuple[torch.Tensor, str]:
    """The image under its classes (1, h, w), ignored pixels in white, and their names."""
    labels = enlarge(labels.cpu().to(torch.int64), "nearest-exact")[0]
    found = labels.unique().tolist()
    colours = [(255, 255, 255) if i == 255 else colour_of(i, palette) for i in found]
    masks = torch.stack([labels == i for i in found])
    names = ["ignored" if i == 255 else class_name(i, classes) for i in found]
    shown = draw_segmentation_masks(image, masks, alpha=0.5, colors=colours)
    return shown, ", ".join(names)


def with_instances(
    image: torch.Tensor, instances: Any, scale: float, classes: Sequence[str] | None
) -> tuple[torch.Tensor, str]:
    """The image with its objects' boxes, names and masks, and their number."""
    count = len(instances)
    if not count:
        return image, "no objects"
    colours = [colour_of(i, None) for i in range(count)]
    if "masks" in instances:
        masks = torch.from_numpy(instances.masks.to_ndarray().astype(np.uint8))
        image = draw_segmentation_masks(
            image, enlarge(masks, "nearest-exact").bool(), alpha=0.5, colors=colours
        )
    boxes = getattr(instances.bboxes, "tensor", instances.bboxes).cpu() * scale
    names = [class_name(int(label), classes) for label in instances.labels]
    drawing = to_pil_image(image)
    pen, font = ImageDraw.Draw(drawing), ImageFont.load_default(14)
    for box, name, colour in zip(boxes.tolist(), names, colours, strict=True):
        pen.rectangle(box, outline=colour, width=2)
        pen.rectangle(pen.textbbox(box[:2], name, font), fill=colour)
        pen.text(box[:2], name, "white", font)
    return pil_to_tensor(drawing), f"{count} object{'s' if count > 1 else ''}"


def class_name(label: int, classes: Sequence[str] | None) -> str:
    """Name of a class, or its number where there is none."""
    return str(classes[label]) if classes and label < len(classes) else str(label)


def colour_of(index: int, palette: Sequence[Sequence[int]] | None) -> tuple[int, int, int]:
    """Colour of a class in a data set's palette, or in matplotlib's."""
    if palette and index < len(palette):
        return tuple(palette[index])
    from matplotlib import colormaps

    red, green, blue = (round(255 * channel) for channel in colormaps["tab10"](index % 10)[:3])
    return red, green, blue


def draw_grid(samples: Sequence[Sample], title: str) -> Any:
    """Lays samples out in a ``matplotlib`` figure."""
    from matplotlib.figure import Figure

    columns = min(len(samples), 4 if len(samples) <= 16 else 8)
    rows = -(-len(samples) // columns)
    figure = Figure((2.7 * columns, 2.95 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, sample in zip(axes, samples, strict=False):
        axis.imshow(sample.image.permute(1, 2, 0).numpy())
        axis.set_title(textwrap.fill(sample.title, 40), fontsize=9, loc="left")
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run(browse, argv)


if __name__ == "__main__":
    sys.exit(main())
