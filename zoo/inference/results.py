"""What models say of an image."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Size = tuple[int, int]


@dataclass(frozen=True)
class Result:
    """What a model says of an image.

    Attributes:
        path: File of the image; None if it was not given as one.
        size: Height and width of the image in pixels.
    """

    path: str | None
    size: Size | None

    def to_json(self) -> dict[str, Any]:
        """The result in plain types; maps of pixels are left out."""
        return {"path": self.path, "size": self.size}


@dataclass(frozen=True)
class Failure(Result):
    """Why there is nothing to say of an image.

    Attributes:
        error: The reason, which names the image.
    """

    error: str

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "error": self.error}


@dataclass(frozen=True)
class Classification(Result):
    """The likeliest classes, the best first.

    Attributes:
        labels: Names of classes.
        scores: Their probabilities, float32 (N,).
        classes: Their numbers, (N,).
    """

    labels: list[str]
    scores: np.ndarray
    classes: np.ndarray

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(),
            "labels": self.labels,
            "scores": _rounded(self.scores, 5),
            "classes": self.classes.tolist(),
        }


@dataclass(frozen=True)
class Detection(Result):
    """Instances, in the order of their scores.

    Attributes:
        labels: Names of classes.
        scores: float32 (N,); None of what is annotated.
        classes: Numbers of classes, (N,).
        boxes: Left, top, right and bottom in pixels of the image, float32 (N, 4).
        masks: (N, H, W), bool; None of a detector without masks.
    """

    labels: list[str]
    scores: np.ndarray | None
    classes: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        """Masks become COCO's compressed run lengths."""
        plain = {
            **super().to_json(),
            "labels": self.labels,
            "scores": None if self.scores is None else _rounded(self.scores, 5),
            "classes": self.classes.tolist(),
            "boxes": _rounded(self.boxes, 2),
        }
        if self.masks is not None:
            plain["masks"] = [_run_lengths(mask) for mask in self.masks]
        return plain


@dataclass(frozen=True)
class Segmentation(Result):
    """A class for every pixel.

    Attributes:
        map: Numbers of classes, (H, W); 255 where there is none.
        names: Names of all classes, in the order of their numbers.
    """

    map: np.ndarray
    names: list[str]

    def to_json(self) -> dict[str, Any]:
        """Instead of the map, the share of each class in it."""
        numbers, counts = np.unique(self.map, return_counts=True)
        shares = {
            self.names[number]: round(count / self.map.size, 5)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
            if number < len(self.names)
        }
        return {**super().to_json(), "shares": shares}


@dataclass(frozen=True)
class Panoptic(Result):
    """A segment for every pixel, and a class for every segment.

    Attributes:
        map: Number of the segment, counted from 1, (H, W); 0 where there is none.
        labels: Names of the segments' classes.
        classes: Their numbers, (N,).
    """

    map: np.ndarray
    labels: list[str]
    classes: np.ndarray

    def to_json(self) -> dict[str, Any]:
        areas = np.bincount(self.map.ravel(), minlength=len(self.labels) + 1)[1:]
        segments = [
            {"id": index, "label": label, "class": number, "area": area}
            for index, (label, number, area) in enumerate(
                zip(self.labels, self.classes.tolist(), areas.tolist(), strict=True), 1
            )
        ]
        return {**super().to_json(), "segments": segments}


def _rounded(values: np.ndarray, digits: int) -> list:
    return np.round(values.astype(float), digits).tolist()


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    from faster_coco_eval import mask as coco

    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}
