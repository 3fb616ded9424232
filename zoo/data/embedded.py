"""Data sets made from what pip packages ship, in the formats of the real ones.

Digits are the 1,797 handwritten scans of scikit-learn. Scenes compose those scans, as glyphs with
boxes, masks and captions, over the photographs of scikit-image and scikit-learn; glyphs are one
scan each over a small part of a photograph; cards show one or two glyphs on plain grounds, to
learn to draw them. People are drawn under several cameras, for re-identification. Training and
held-out data share neither scans nor photographs, nor people.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..errors import DataError
from .cards import write_cards
from .glyphs import CLASSES, COLOURS, bounding_box, named, render, write_annotations
from .pedestrians import write_people

__all__ = ["CLASSES", "make_embedded"]


# What each photograph shows, for the captions.
PHOTOGRAPHS = {
    "train": {
        "astronaut.png": "an astronaut",
        "brick.png": "a brick wall",
        "camera.png": "a cameraman",
        "china.jpg": "a temple",
        "coffee.png": "a cup of coffee",
        "coins.png": "old coins",
        "grass.png": "grass",
        "hubble_deep_field.jpg": "galaxies",
        "ihc.png": "stained tissue",
        "moon.png": "the moon",
        "motorcycle_left.png": "a motorcycle",
        "motorcycle_right.png": "a motorcycle",
        "retina.jpg": "a retina",
    },
    "val": {
        "cell.png": "a cell",
        "chelsea.png": "a cat",
        "flower.jpg": "a flower",
        "gravel.png": "gravel",
        "rocket.jpg": "a rocket",
    },
}
SCENES = {"train": 600, "val": 120}
SIZE = 160
GLYPH_SIZE = 64
GLYPHS_PER_SCAN = 2
HELD_OUT = 0.2

_MARKER = "embedded.json"
_FORMAT = 5


class _Glyph(NamedTuple):
    digit: int
    colour: str
    top: int
    left: int
    alpha: np.ndarray  # (height, width), in [0, 1]

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def make_embedded(out: str | Path = "data/embedded", seed: int = 0) -> Path:
    """Writes the embedded data sets, unless they are there already.

    The layout; ``val`` holds a fifth of each digit's scans::

        out/digits/{train,val}/<0..9>/*.png              ImageFolder, 8 x 8 pixels
        out/glyphs/{train,val}/<0..9>/*.png              ImageFolder, 64 x 64 pixels
        out/scenes/{train2017,val2017}/*.png             160 x 160 pixels
        out/scenes/annotations/instances_*2017.json      COCO: boxes, masks
        out/scenes/annotations/captions_*2017.json       COCO: two captions an image
        out/scenes/stuffthingmaps/*2017/*.png            0 background, 1..10 the category
        out/cards/{train2017,val2017}/*.png              16 x 16 pixels, as scenes:
        out/cards/annotations/{instances,captions}_*2017.json   each instance has a caption, too
        out/reid/{bounding_box_train,query,bounding_box_test}/0002_c1s1_000025_01.jpg
                                                         Market-1501, 48 x 96 pixels

    The same seed and library versions give the same bytes. The folder appears whole or not at all.

    Args:
        out: Folder to make. One that holds these data for another seed is replaced.
        seed: Seed of the split and of the scenes.

    Returns:
        The folder.

    Raises:
        ModuleNotFoundError: If scikit-learn or scikit-image is missing.
        DataError: If ``out`` is something else than embedded data, or the installed packages lack
            one of the photographs.
    """
    out = Path(out)
    if _is_complete(out, seed):
        return out
    if out.exists() and not (out / _MARKER).is_file() and (out.is_file() or any(out.iterdir())):
        raise DataError(
            f"{out} exists and holds no embedded data: choose another folder, or empty this one"
        )
    _require("sklearn", "skimage")
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        made.chmod(0o755)
        scans = _split_scans(seed)
        for index, split in enumerate(SCENES):
            photographs = _read_photographs(split)
            _write_digits(made / "digits" / split, scans[split])
            rng = np.random.default_rng([seed, index])
            _write_scenes(made / "scenes", split, scans[split], photographs, rng)
            rng = np.random.default_rng([seed, index, GLYPH_SIZE])
            _write_glyphs(made / "glyphs" / split, scans[split], photographs, rng)
            write_cards(
                made / "cards", split, scans[split], np.random.default_rng([seed, 3, index])
            )
            part = {"train": "train", "val": "test"}[split]
            rng = np.random.default_rng([seed, 2, index])
            pictures = [photograph for photograph, _ in photographs]
            write_people(made / "reid", part, scans[split][0], pictures, rng, seed)
        (made / _MARKER).write_text(json.dumps({"format": _FORMAT, "seed": seed}) + "\n")
        if (out / _MARKER).is_file():
            shutil.rmtree(out)
        try:
            os.replace(made, out)
        except OSError:  # another process was faster
            if not _is_complete(out, seed):
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out


def _is_complete(out: Path, seed: int) -> bool:
    try:
        return json.loads((out / _MARKER).read_text()) == {"format": _FORMAT, "seed": seed}
    except (OSError, ValueError):
        return False


def _require(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the embedded data are made from what {' and '.join(missing)} would ship: "
            'pip install "visattn[train]"'
        )


def _split_scans(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scans (N, 8, 8) in [0, 1] and digits (N,) of either split, stratified."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train_x, val_x, train_y, val_y = train_test_split(
        digits.images / 16,
        digits.target,
        test_size=HELD_OUT,
        stratify=digits.target,
        random_state=seed,
    )
    return {"train": (train_x, train_y), "val": (val_x, val_y)}


def _write_digits(folder: Path, scans: tuple[np.ndarray, np.ndarray]) -> None:
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for index, (scan, digit) in enumerate(zip(*scans, strict=True)):
        pixels = np.round(scan * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / str(digit) / f"{index:04d}.png")


def _write_glyphs(
    folder: Path,
    scans: tuple[np.ndarray, np.ndarray],
    photographs: list[tuple[Image.Image, str]],
    rng: np.random.Generator,
) -> None:
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for index, (scan, digit) in enumerate(zip(*scans, strict=True)):
        for copy in range(GLYPHS_PER_SCAN):
            photograph, _ = photographs[rng.integers(len(photographs))]
            canvas = _crop(photograph, GLYPH_SIZE, rng)
            alpha = render(scan, int(rng.integers(20, 45)), rng.uniform(-15, 15))
            _paint(canvas, _put(canvas, alpha, int(digit), rng), rng)
            name = f"{index:04d}_{copy}.png"
            Image.fromarray(np.round(canvas).astype(np.uint8)).save(folder / str(digit) / name)


def _write_scenes(
    folder: Path,
    split: str,
    scans: tuple[np.ndarray, np.ndarray],
    photographs: list[tuple[Image.Image, str]],
    rng: np.random.Generator,
) -> None:
    name = f"{split}2017"
    for part in (name, f"stuffthingmaps/{name}", "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for image_id in range(1, SCENES[split] + 1):
        photograph, subject = photographs[rng.integers(len(photographs))]
        canvas = _crop(photograph, SIZE, rng)
        glyphs = _place(canvas, scans, rng)
        for glyph in glyphs:
            _paint(canvas, glyph, rng)
        file_name = f"{image_id:012d}.png"
        semantic = np.zeros((SIZE, SIZE), np.uint8)
        for glyph, mask in _visible_masks(glyphs):
            semantic[mask] = glyph.digit + 1
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "category_id": glyph.digit + 1,
                    "bbox": bounding_box(mask),
                    "area": int(mask.sum()),
                    "segmentation": _run_lengths(mask),
                    "iscrowd": 0,
                }
            )
        for caption in _captions(glyphs, subject):
            captions.append({"id": len(captions) + 1, "image_id": image_id, "caption": caption})
        images.append({"id": image_id, "file_name": file_name, "width": SIZE, "height": SIZE})
        Image.fromarray(np.round(canvas).astype(np.uint8)).save(folder / name / file_name)
        Image.fromarray(semantic).save(folder / "stuffthingmaps" / name / file_name)

    description = f"visattn embedded scenes, {split}"
    write_annotations(folder / "annotations", name, description, images, instances, captions)


def _read_photographs(split: str) -> list[tuple[Image.Image, str]]:
    """Photographs of a split and what they show, scaled so that a crop shows a good part."""
    import skimage
    import sklearn.datasets

    folders = (
        Path(skimage.__file__).parent / "data",
        Path(sklearn.datasets.__file__).parent / "images",
    )
    photographs = []
    for name, subject in PHOTOGRAPHS[split].items():
        path = next((f / name for f in folders if (f / name).is_file()), None)
        if path is None:
            raise DataError(
                f"neither scikit-image {skimage.__version__} nor scikit-learn ships {name} here: "
                'pip install --force-reinstall "scikit-image>=0.20" scikit-learn'
            )
        image = Image.open(path).convert("RGB")
        scale = 2 * SIZE / min(image.size)
        size = [round(side * scale) for side in image.size]
        photographs.append((image.resize(size, Image.Resampling.BICUBIC), subject))
    return photographs


def _crop(photograph: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square of a photograph, maybe mirrored, (size, size, 3) in [0, 255]."""
    side = int(rng.integers(SIZE, 2 * SIZE + 1))
    left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
    box = (left, top, left + side, top + side)
    canvas = np.asarray(photograph.resize((size, size), Image.Resampling.BICUBIC, box), np.float64)
    return (canvas[:, ::-1] if rng.random() < 0.5 else canvas).copy()


def _place(
    canvas: np.ndarray,
    scans: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> list[_Glyph]:
    """Three to six glyphs, later ones in front, that hide no more than a seam of each other."""
    images, digits = scans
    glyphs: list[_Glyph] = []
    taken = np.zeros((SIZE, SIZE), bool)
    count = rng.integers(3, 7)
    for _ in range(40):
        index = rng.integers(len(images))
        alpha = render(images[index], int(rng.integers(28, 61)), rng.uniform(-15, 15))
        glyph = _put(canvas, alpha, int(digits[index]), rng, taken)
        if glyph is None:
            continue
        taken[glyph.window] = True
        glyphs.append(glyph)
        if len(glyphs) == count:
            break
    return glyphs


def _put(
    canvas: np.ndarray,
    alpha: np.ndarray,
    digit: int,
    rng: np.random.Generator,
    taken: np.ndarray | None = None,
) -> _Glyph | None:
    """A glyph at a random place in a contrasting colour; None where too much is taken there."""
    place = (int(rng.integers(2, len(canvas) - side - 1)) for side in alpha.shape)
    glyph = _Glyph(digit, "", *place, alpha)
    if taken is not None and taken[glyph.window].mean() > 0.08:
        return None
    return glyph._replace(colour=_contrasting_colour(canvas[glyph.window][alpha > 0.5], rng))


def _contrasting_colour(pixels: np.ndarray, rng: np.random.Generator) -> str:
    """Of three random colours the one farthest from the pixels (N, 3) that it will cover."""
    names = rng.choice(list(COLOURS), 3, replace=False)

    def distance(name: str) -> float:
        return float(np.quantile(np.linalg.norm(pixels - COLOURS[name], axis=1), 0.1))

    return str(max(names, key=distance))


def _paint(canvas: np.ndarray, glyph: _Glyph, rng: np.random.Generator) -> None:
    colour = np.clip(np.add(COLOURS[glyph.colour], rng.normal(0, 6, 3)), 0, 255)
    alpha = glyph.alpha[..., None]
    canvas[glyph.window] = (1 - alpha) * canvas[glyph.window] + alpha * colour


def _visible_masks(glyphs: list[_Glyph]) -> Iterator[tuple[_Glyph, np.ndarray]]:
    """Each glyph with the mask (160, 160) of what later glyphs leave of it."""
    hidden = np.zeros((SIZE, SIZE), bool)
    visible = []
    for glyph in reversed(glyphs):
        mask = np.zeros((SIZE, SIZE), bool)
        mask[glyph.window] = glyph.alpha > 0.5
        visible.append((glyph, mask & ~hidden))
        hidden |= mask
    return reversed(visible)


def _run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's run-length code: runs of 0 and 1 in turn, zeros first, down the columns."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [1 - mask[-1, -1]]])
    starts = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], starts]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _captions(glyphs: list[_Glyph], subject: str) -> tuple[str, str]:
    ordered = sorted(glyphs, key=lambda glyph: glyph.left)
    *first, last = [named(g.colour, g.digit) for g in ordered]
    listed = f"{', '.join(first)} and {last}" if first else last
    digits = ", ".join(CLASSES[g.digit] for g in ordered)
    return (
        f"{listed} over a photograph of {subject}",
        f"{subject} with {CLASSES[len(glyphs)]} handwritten digits, from left to right: {digits}",
    )


def main() -> None:
    """Command line; see ``--help``."""
    parser = argparse.ArgumentParser(description="Write the embedded data sets.")
    parser.add_argument("out", nargs="?", default="data/embedded", help="folder to make")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and the scenes")
    args = parser.parse_args()
    try:
        out = make_embedded(args.out, args.seed)
    except (DataError, ModuleNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"embedded data in {out}")


if __name__ == "__main__":
    main()
