"""Whether the digits that diffusion draws on the embedded cards are those that were asked for."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from scipy import ndimage
from torchvision.ops import box_iou

from ..data.glyphs import CLASSES, COLOURS
from ..errors import ConfigError, UserError
from ..inference import Classification, load_predictor, predict_each

__all__ = [
    "DigitsInBoxes",
    "find_glyphs",
    "ink",
    "judge",
    "load_judge",
    "means",
    "nearest_colour",
    "scan",
]

_SIDE = 8
_LEAST_PIXELS = 8


def ink(image: np.ndarray) -> np.ndarray:
    """How far each pixel is from the ground, the commonest colour: (H, W) in [0, 1].

    Args:
        image: Bytes (H, W, 3).
    """
    pixels = image.astype(np.float32)
    coarse = (image // 16).reshape(-1, 3)
    kinds, counts = np.unique(coarse, axis=0, return_counts=True)
    of_ground = (image // 16 == kinds[counts.argmax()]).all(-1)
    distance = np.linalg.norm(pixels - np.median(pixels[of_ground], axis=0), axis=-1)
    # Half the distance of the two nearest of the colours and grounds.
    return np.clip(distance / max(float(distance.max()), 60.0), 0, 1)


def find_glyphs(image: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) in pixels of what stands on a ground, each touching no other."""
    labels, _ = ndimage.label(ink(image) > 0.4, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1)
        if sizes[number] >= _LEAST_PIXELS
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)


def scan(image: np.ndarray, box: Sequence[float]) -> PIL.Image.Image:
    """What is in a box as the scans are that classifiers of digits are trained on.

    They are white on black, as high as the picture and in the middle of its 8 x 8 pixels.

    Args:
        image: Bytes (H, W, 3).
        box: Left, top, right, bottom in pixels.
    """
    left, top = (int(np.floor(value)) for value in box[:2])
    right, bottom = (max(int(np.ceil(b)), a + 1) for a, b in zip((left, top), box[2:], strict=True))
    inside = ink(image)[top:bottom, left:right]
    inside = inside / max(float(inside.max()), 0.2)
    width = min(max(round(_SIDE * inside.shape[1] / inside.shape[0]), 1), _SIDE)
    grey = PIL.Image.fromarray(np.round(255 * inside).astype(np.uint8))
    canvas = PIL.Image.new("L", (_SIDE, _SIDE))
    canvas.paste(grey.resize((width, _SIDE), PIL.Image.Resampling.BOX), ((_SIDE - width) // 2, 0))
    return canvas.convert("RGB")


def nearest_colour(image: np.ndarray, box: Sequence[float], names: Sequence[str]) -> str:
    """The name of the colour that the glyph in a box has.

    Args:
        image: Bytes (H, W, 3).
        box: Left, top, right, bottom in pixels.
        names: Of colours to choose from.
    """
    left, top, right, bottom = (int(round(value)) for value in box)
    window = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
    weights = ink(image)[window]
    pixels = image[window][weights >= 0.8 * weights.max()].astype(np.float32)
    colour = np.median(pixels, axis=0)
    return min(names, key=lambda name: float(np.linalg.norm(colour - COLOURS[name])))


def judge(
    images: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]],
    predictor: Any,
) -> list[dict[str, float]]:
    """What there is of each instance.

    Args:
        images: Bytes (H, W, 3).
        boxes: Of each in pixels, (n, 4).
        captions: Of these, such as "a red seven".
        predictor: Classifier of digits, of ``visattn.zoo.inference.load_predictor``.

    Returns:
        For each box ``digit`` and ``colour``, whether they are right; ``both``; ``iou``, with the
        nearest glyph of the image; and ``success``, whether both are right and ``iou`` is 0.5.

    Raises:
        UserError: If the classifier fails, or has other classes than ten digits.
    """
    if len(predictor.names) != len(CLASSES):
        raise UserError(f"the judge must know ten digits; it knows {', '.join(predictor.names)}")
    from ..data.cards import COLOUR_NAMES

    pairs = [
        (image, box, caption)
        for image, own, texts in zip(images, boxes, captions, strict=True)
        for box, caption in zip(own, texts, strict=True)
    ]
    scans = [scan(image, box) for image, box, _ in pairs]
    read = predict_each(predictor, scans, 64)
    rows = []
    for (image, box, caption), result in zip(pairs, read, strict=True):
        if not isinstance(result, Classification):
            raise UserError(f"the judge of digits failed: {result}")
        *_, colour, word = caption.split()
        digit = predictor.names.index(result.labels[0]) == CLASSES.index(word)
        right_colour = nearest_colour(image, box, COLOUR_NAMES) == colour
        found = torch.from_numpy(find_glyphs(image))
        wanted = torch.as_tensor(np.asarray(box, np.float32))[None]
        overlap = float(box_iou(wanted, found).max()) if len(found) else 0.0
        both = digit and right_colour
        rows.append(
            {
                "digit": float(digit),
                "colour": float(right_colour),
                "both": float(both),
                "iou": overlap,
                "success": float(both and overlap >= 0.5),
            }
        )
    return rows


@functools.lru_cache(maxsize=1)
def load_judge(classifier: str, checkpoint: str) -> Any:
    """A classifier of digits.

    Raises:
        ConfigError: If there is no such checkpoint.
    """
    _require_judge(classifier, checkpoint)
    return load_predictor(classifier, checkpoint)


def _require_judge(classifier: str, checkpoint: str) -> None:
    if not Path(checkpoint).is_file():
        raise ConfigError(
            f"the judge of digits {checkpoint} is missing: python tools/train.py {classifier}, or "
            "set val_evaluator.checkpoint, or val_evaluator, val_dataloader and val_cfg to None"
        )


@METRICS.register_module()
class DigitsInBoxes(BaseMetric):
    """Per cent of boxes with the right digit, the right colour, both, and in the right place.

    Args:
        classifier: Configuration of the classifier of digits that judges.
        checkpoint: Its weights.

    Raises:
        ConfigError: If there is no such file, which is said before training.
    """

    default_prefix = "boxes"

    def __init__(
        self,
        classifier: str,
        checkpoint: str,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        _require_judge(classifier, checkpoint)
        self.classifier, self.checkpoint = classifier, checkpoint

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Judges what was drawn."""
        images = [sample["drawn"].permute(1, 2, 0).numpy() for sample in data_samples]
        boxes = [
            sample["boxes"].numpy() * np.tile(image.shape[1::-1], 2)
            for sample, image in zip(data_samples, images, strict=True)
        ]
        captions = [sample["captions"] for sample in data_samples]
        predictor = load_judge(self.classifier, self.checkpoint)
        self.results += judge(images, boxes, captions, predictor)

    def compute_metrics(self, results: list[dict[str, float]]) -> dict[str, float]:
        """Means over all boxes, in per cent."""
        return means(results)


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of what ``judge`` gives, in per cent."""
    return {key: 100 * float(np.mean([row[key] for row in rows])) for key in rows[0]}
