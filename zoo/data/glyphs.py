"""Handwritten digits as glyphs that are painted onto pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "CLASSES",
    "COLOURS",
    "bounding_box",
    "named",
    "render",
    "with_article",
    "write_annotations",
]

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (225, 35, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 230, 40),
    "green": (30, 170, 60),
    "cyan": (40, 215, 225),
    "blue": (35, 70, 220),
    "purple": (130, 40, 170),
    "pink": (250, 110, 190),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}


def render(scan: np.ndarray, height: int, angle: float, least_width: int = 8) -> np.ndarray:
    """A scan (8, 8) as the opacity (height, width) of a glyph with smooth edges.

    Args:
        scan: Pixels in [0, 1].
        height: Pixels.
        angle: Degrees by which it is turned.
        least_width: Pixels; narrower glyphs are made as wide.
    """
    bordered = np.pad(scan, 2).astype(np.float32)
    side = 6 * height  # finer than needed, so that turning costs no sharpness
    glyph = Image.fromarray(bordered).resize((side, side), Image.Resampling.BICUBIC)
    glyph = glyph.rotate(angle, Image.Resampling.BILINEAR)
    rows, columns = (np.flatnonzero(np.asarray(glyph).max(axis) > 0.4) for axis in (1, 0))
    glyph = glyph.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    width = min(max(round(height * glyph.width / glyph.height), least_width), 60)
    opacity = np.asarray(glyph.resize((width, height), Image.Resampling.BOX))
    return np.clip((opacity - 0.4) * 4 + 0.5, 0, 1)


def bounding_box(mask: np.ndarray) -> list[int]:
    """COCO's [left, top, width, height] of a mask (H, W)."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def with_article(noun: str) -> str:
    """A noun behind "a" or "an"."""
    return f"{'an' if noun[:1] in tuple('aeiou') else 'a'} {noun}"


def named(colour: str, digit: int) -> str:
    """What a glyph is called in captions."""
    return with_article(f"{colour} {CLASSES[digit]}")


def write_annotations(
    folder: Path,
    name: str,
    description: str,
    images: list[dict[str, Any]],
    instances: list[dict[str, Any]],
    captions: list[dict[str, Any]],
) -> None:
    """Writes ``instances_NAME.json`` and ``captions_NAME.json`` in COCO's layout.

    Args:
        folder: Folder, which exists.
        name: Of the split, such as ``train2017``.
        description: Of the data set.
        images: Records of images.
        instances: Annotations whose categories are 1 + digit.
        captions: Annotations with captions.
    """
    info = {"description": description}
    categories = [
        {"id": digit + 1, "name": word, "supercategory": "digit"}
        for digit, word in enumerate(CLASSES)
    ]
    for task, content in (
        ("instances", {"annotations": instances, "categories": categories}),
        ("captions", {"annotations": captions}),
    ):
        record = {"info": info, "licenses": [], "images": images, **content}
        (folder / f"{task}_{name}.json").write_text(json.dumps(record))
