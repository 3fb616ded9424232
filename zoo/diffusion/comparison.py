"""Methods of instance control on embedded cards: ``python -m visattn.zoo.diffusion.comparison``.

Every method draws the held-out cards of the same base from the same noise; a classifier of digits
judges what is in the boxes. The cards themselves are judged, too: no method can do better.
"""

import argparse
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

from ..errors import UserError
from ..files import replacing
from .cards import judge, load_judge, means
from .data import CocoCaptions, Record
from .drawing import contact_sheet
from .generation import Settings, draw, load_pipeline
from .layouts import Instance, Layout
from .summary import TITLES, write_rows

__all__ = ["compare", "to_layout"]

METHODS = ("plain", "masked", "roictrl")


def to_layout(record: Record) -> Layout:
    """A record as a layout to draw, named by its file."""
    scale = np.tile(record.size, 2)
    instances = [
        Instance(tuple((box / scale).tolist()), caption)
        for box, caption in zip(record.boxes, record.box_captions, strict=True)
    ]
    name = Path(record.path).stem
    return Layout(
        name,
        record.captions[0],
        tuple(instances),
        seed=zlib.crc32(Path(record.path).name.encode()),
        width=record.size[0],
        height=record.size[1],
    )


def compare(
    records: Sequence[Record],
    base: str | Path,
    roictrl: str | Path,
    predictor: object,
    settings: Settings,
    methods: Sequence[str] = METHODS,
    batch_size: int = 50,
) -> tuple[list[dict[str, float | str]], dict[str, list[PIL.Image.Image]]]:
    """Draws and judges cards by several methods.

    Args:
        records: Cards.
        base: Folder of the pipeline.
        roictrl: Weights of ROICtrl.
        predictor: Classifier of digits.
        settings: How to draw.
        methods: Of ``visattn.zoo.diffusion.generation.METHODS``.
        batch_size: Pictures at once.

    Returns:
        A row of ``summary.COLUMNS`` for the cards themselves and each method, shares in per cent;
        and the pictures of each method.
    """
    layouts = [to_layout(record) for record in records]
    pictures = {"real": [PIL.Image.open(record.path).convert("RGB") for record in records]}
    for method in methods:
        weights = roictrl if method == "roictrl" else None
        pipeline = load_pipeline(method, base, weights)
        # The prompt of a card names all of its digits: none is to be joined to it.
        asked = [replace(own, instances=()) for own in layouts] if method == "plain" else layouts
        pictures[method] = [
            image
            for group in _batches(asked, batch_size)
            for image in draw(pipeline, method, group, [own.seed for own in group], settings)
        ]
    rows = []
    for method, images in pictures.items():
        found = judge(
            [np.asarray(image) for image in images],
            [record.boxes for record in records],
            [record.box_captions for record in records],
            predictor,
        )
        rows.append({"method": method, "boxes": len(found), **means(found)})
    return rows, pictures


def _batches(items: Sequence[Layout], size: int) -> Iterator[Sequence[Layout]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = "work_dirs/base-micro_embedded/pipeline"
    weights = "work_dirs/roictrl-micro_embedded/roictrl.safetensors"
    judge_config = "configs/classification/biformer/biformer-micro_embedded.py"
    judge_weights = "work_dirs/biformer-micro_embedded/epoch_20.pth"
    parser.add_argument("--base", default=folder, help="pipeline (default: %(default)s)")
    parser.add_argument("--roictrl", default=weights, help="weights (default: %(default)s)")
    parser.add_argument("--judge-config", default=judge_config, help="(default: %(default)s)")
    parser.add_argument("--judge", default=judge_weights, help="(default: %(default)s)")
    parser.add_argument("--data", default="data/embedded/cards", help="(default: %(default)s)")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="(default: all)")
    parser.add_argument("--steps", type=int, default=25, help="(default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=2.0, help="(default: %(default)s)")
    parser.add_argument("--count", type=int, help="only the first cards")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="rows, for the README's table")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="pictures of some cards")
    args = parser.parse_args(argv)
    try:
        records = CocoCaptions(
            args.data,
            "annotations/instances_val2017.json",
            "annotations/captions_val2017.json",
            {"img": "val2017/"},
            training=False,
        ).records[: args.count]
        predictor = load_judge(args.judge_config, args.judge)
        settings = Settings(steps=args.steps, guidance_scale=args.guidance)
        rows, pictures = compare(
            records, args.base, args.roictrl, predictor, settings, args.methods
        )
        for row in rows:
            print(", ".join(f"{key} {value}" for key, value in row.items()))
        if args.out:
            write_rows(rows, args.out)
        if args.sheet:
            columns = {TITLES.get(k, k): images[:8] for k, images in pictures.items()}
            sheet = contact_sheet([to_layout(record) for record in records[:8]], columns, 96)
            with replacing(args.sheet) as temporary:
                sheet.quantize(128).save(temporary, optimize=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
