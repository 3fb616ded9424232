"""Results drawn on their images."""

import colorsys
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from .results import Classification, Detection, Panoptic, Result, Segmentation
from .samples import to_sample

Colours = Sequence[Sequence[int]]

LEGIBLE = 480
"""Pixels a side that a drawing should about have at least."""


def draw(
    image: PIL.Image.Image,
    result: Result,
    names: Sequence[str],
    palette: Colours | None = None,
) -> PIL.Image.Image:
    """Draws a result on its image; the classes of a classification beside it.

    Args:
        image: RGB, of the size that the result is of.
        result: Result of any task.
        names: Names of all classes.
        palette: Colour of each class; by default as different as can be.

    Returns:
        A new image, of a multiple of the size where that is small: lines and letters need room.
    """
    if isinstance(result, Classification):
        return _draw_classes(image, result)
    scale = max(1, round(LEGIBLE / min(image.size)))
    image = image.resize((scale * image.width, scale * image.height), PIL.Image.Resampling.BICUBIC)
    if not _is_anything_in(result, len(names)):
        return image
    sample = to_sample(_enlarge(result, scale), len(names))
    is_truth = "gt_instances" in sample
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*save_dir is None.*")
        from mmdet.visualization import DetLocalVisualizer

        visualizer = DetLocalVisualizer("visattn", alpha=0.5, line_width=2)
    visualizer.dataset_meta = {
        "classes": list(names),
        "palette": [tuple(colour) for colour in palette or distinct_colours(len(names))],
    }
    visualizer.add_datasample(
        "", np.asarray(image), sample, is_truth, not is_truth, pred_score_thr=-1
    )
    drawn = PIL.Image.fromarray(visualizer.get_image())
    visualizer.close()
    return drawn


def side_by_side(images: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    """Images of one height in a row."""
    return PIL.Image.fromarray(np.concatenate([np.asarray(image) for image in images], axis=1))


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of far apart hues."""
    colours = []
    for index in range(count):
        hue = index * 0.618034 % 1
        rgb = colorsys.hsv_to_rgb(hue, (0.95, 0.7)[index % 2], (1.0, 0.8)[index // 2 % 2])
        colours.append(tuple(round(255 * part) for part in rgb))
    return colours


def _enlarge(result: Result, scale: int) -> Result:
    """A result as of an image that is ``scale`` times as large."""
    if isinstance(result, Detection):
        masks = None if result.masks is None else _repeat(result.masks, scale)
        return replace(result, boxes=result.boxes * scale, masks=masks)
    return replace(result, map=_repeat(result.map, scale))


def _repeat(pixels: np.ndarray, scale: int) -> np.ndarray:
    return pixels.repeat(scale, -2).repeat(scale, -1)


def _is_anything_in(result: Result, num_classes: int) -> bool:
    if isinstance(result, Segmentation):
        return bool((result.map < num_classes).any())
    return isinstance(result, (Detection, Panoptic)) and len(result.labels) > 0


def _draw_classes(image: PIL.Image.Image, result: Classification) -> PIL.Image.Image:
    height = max(image.height, 224)
    picture = image.resize((round(image.width * height / image.height), height))
    line = height / (len(result.labels) + 1)
    size = max(10, round(min(0.35 * line, 0.06 * height)))
    font = ImageFont.load_default(size)
    left, width = picture.width + size, 18 * size
    canvas = PIL.Image.new("RGB", (left + width + size, height), "white")
    canvas.paste(picture)
    brush = ImageDraw.Draw(canvas)
    for rank, (label, score) in enumerate(zip(result.labels, result.scores, strict=True)):
        top = (rank + 0.5) * line
        brush.text((left, top), f"{label[:26]}  {100 * score:.1f} %", "black", font)
        bar = (left, top + 1.4 * size, left + max(1, round(width * float(score))), top + 1.9 * size)
        brush.rectangle(bar, (37, 99, 235) if rank == 0 else (203, 213, 225))
    return canvas
