"""Small cards with a few handwritten digits in colours on a plain ground, and captions of each."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .glyphs import COLOURS, bounding_box, named, render, write_annotations

__all__ = ["GROUNDS", "SIZE", "write_cards"]

CARDS = {"train": 5000, "val": 200}
SIZE = 16
HEIGHT = 8
SCANS = 2
"""Scans of each digit: the fewer there are, the sooner a network can draw them."""
COLOUR_NAMES = ("red", "yellow", "green", "cyan", "blue", "pink")
GROUNDS = {"black": (12, 12, 12), "grey": (120, 120, 120), "white": (250, 250, 250)}
"""Colours of grounds by name."""


def write_cards(
    folder: Path, split: str, scans: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> None:
    """Writes the cards of a split as COCO does, with a caption in each annotation, too.

    Each has one or two glyphs, of which no two touch, and the caption
    "a red seven and a blue two on black", in any order. Left and top are even, so that patches of
    2 x 2 pixels cut all glyphs alike.

    Args:
        folder: Folder of all splits.
        split: ``"train"`` or ``"val"``.
        scans: Scans (N, 8, 8) in [0, 1] and digits (N,).
        rng: Source of all randomness.
    """
    name = f"{split}2017"
    scans = _few(*scans)
    for part in (name, "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for image_id in range(1, CARDS[split] + 1):
        ground = str(rng.choice(list(GROUNDS)))
        canvas = np.tile(np.float64(GROUNDS[ground]), (SIZE, SIZE, 1))
        named_here = []
        for digit, colour, window, alpha in _place(scans, rng):
            weight = alpha[..., None]
            canvas[window] = (1 - weight) * canvas[window] + weight * np.float64(COLOURS[colour])
            mask = np.zeros((SIZE, SIZE), bool)
            mask[window] = alpha > 0.5
            named_here.append(named(colour, digit))
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "category_id": digit + 1,
                    "bbox": bounding_box(mask),
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                    "caption": named_here[-1],
                }
            )
        listed = " and ".join(named_here[i] for i in rng.permutation(len(named_here)))
        caption = f"{listed} on {ground}"
        captions.append({"id": image_id, "image_id": image_id, "caption": caption})
        file_name = f"{image_id:012d}.png"
        images.append({"id": image_id, "file_name": file_name, "width": SIZE, "height": SIZE})
        Image.fromarray(np.round(canvas).astype(np.uint8)).save(folder / name / file_name)
    description = f"visattn embedded cards, {split}"
    write_annotations(folder / "annotations", name, description, images, instances, captions)


def _few(pixels: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first ``SCANS`` of each digit."""
    kept = np.concatenate([np.flatnonzero(digits == digit)[:SCANS] for digit in np.unique(digits)])
    return pixels[kept], digits[kept]


def _place(
    scans: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> list[tuple[int, str, tuple[slice, slice], np.ndarray]]:
    """Digit, colour, window and opacity of one or two glyphs, with a seam between them."""
    pixels, digits = scans
    glyphs = []
    taken = np.zeros((SIZE, SIZE), bool)
    for _ in range(rng.integers(1, 3)):
        index = rng.integers(len(pixels))
        alpha = render(pixels[index], HEIGHT, 0, least_width=4)
        colour = str(rng.choice(COLOUR_NAMES))
        for _ in range(20):
            top, left = (2 * int(rng.integers((SIZE - side) // 2 + 1)) for side in alpha.shape)
            bottom, right = top + alpha.shape[0], left + alpha.shape[1]
            if taken[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].any():
                continue
            window = slice(top, bottom), slice(left, right)
            taken[window] = True
            glyphs.append((int(digits[index]), colour, window, alpha))
            break
    return glyphs
