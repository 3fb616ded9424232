"""Benchmarks of instance control: MIG-Bench, InstDiff-Bench and ROICtrl-Bench.

bench = MIGBench(ZooDetector(predictor), ColourJudge())
for layout, image in drawn:
    bench.update(image, layout)
print(bench.compute())

What is compared with the boxes comes from detectors and judges that are given; see
``visattn.zoo.diffusion.judges``. The papers' are Grounding DINO with SAM and ranges of colours
(MIG-Bench), YOLO and CLIP (InstDiff-Bench), YOLO-World and MiniCPM-V (ROICtrl-Bench).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import torch
from torchvision.ops import box_iou

from ..errors import DataError
from ..inference import Detection
from .judges import Detector, Judge, Scorer
from .layouts import Instance, Layout

__all__ = ["InstDiffBench", "MIGBench", "ROICtrlBench", "best_overlaps", "crop"]

Figures = dict[str, float]


def crop(image: PIL.Image.Image, instance: Instance) -> PIL.Image.Image:
    """What is in the box of an instance, of at least one pixel."""
    x1, y1, x2, y2 = instance.in_pixels(*image.size)
    left, top = min(math.floor(x1), image.width - 1), min(math.floor(y1), image.height - 1)
    return image.crop((left, top, max(round(x2), left + 1), max(round(y2), top + 1)))


def best_overlaps(image: PIL.Image.Image, layout: Layout, found: Detection) -> list[float]:
    """The greatest IoU of each instance's box with a detection of its label; 0 if there is none."""
    overlaps = []
    for instance in layout.instances:
        own = [index for index, label in enumerate(found.labels) if label == instance.label]
        box = torch.tensor([instance.in_pixels(*image.size)], dtype=torch.float64)
        boxes = torch.from_numpy(np.asarray(found.boxes, np.float64)[own])
        overlaps.append(float(box_iou(box, boxes).max()) if own else 0.0)
    return overlaps


def _detect(detector: Detector, image: PIL.Image.Image, layout: Layout) -> Detection:
    if not layout.instances:
        raise DataError(f"layout {layout.name!r} has no instances, and nothing can be looked for")
    return detector(image, [instance.label for instance in layout.instances])


class _Bench:
    """What benchmarks share: an instance at a time is judged, and means are of groups."""

    def __init__(self, detector: Detector, judge: Judge):
        self.detector, self.judge = detector, judge
        self.rows: list[dict] = []
        """What was found of every instance so far."""

    def _judge(self, image: PIL.Image.Image, layout: Layout) -> list[bool]:
        crops = [crop(image, instance) for instance in layout.instances]
        return [bool(right) for right in self.judge(crops, layout.instances)]

    def _means(self, group: str, columns: Mapping[str, str]) -> dict[str, Figures]:
        groups = {row[group] for row in self.rows}
        chosen = {name: [r for r in self.rows if r[group] == name] for name in sorted(groups)}
        chosen["average"] = self.rows
        return {
            name: {title: _mean([row[key] for row in rows]) for title, key in columns.items()}
            for name, rows in chosen.items()
        }


class MIGBench(_Bench):
    """MIG-Bench: is each instance in its box, and does it have its attribute?

    An instance succeeds if a detection of its label has an IoU of at least 0.5 with its box and its
    attribute is right. As in the authors' code the IoU of one with a wrong attribute counts as 0,
    but the attribute is looked at only where the position is right, and means are of instances.

    Args:
        detector: Finds instances by ``Instance.label``.
        judge: Says whether what is in the box has ``Instance.attribute``.
        threshold: IoU that makes a position right.
    """

    def __init__(self, detector: Detector, judge: Judge, threshold: float = 0.5):
        super().__init__(detector, judge)
        self.threshold = threshold

    def update(self, image: PIL.Image.Image, layout: Layout) -> None:
        """Adds a picture.

        Raises:
            DataError: If the layout has no instances.
        """
        overlaps = best_overlaps(image, layout, _detect(self.detector, image, layout))
        rights = self._judge(image, layout)
        for instance, overlap, right in zip(layout.instances, overlaps, rights, strict=True):
            placed = overlap >= self.threshold
            self.rows.append(
                {
                    "layout": layout.name,
                    "level": f"L{len(layout.instances)}",
                    "caption": instance.caption,
                    "overlap": 0.0 if placed and not right else overlap,
                    "success": placed and right,
                }
            )

    def compute(self) -> dict[str, Figures]:
        """``mIoU`` and ``success`` of each level (``L2`` has two instances) and the ``average``."""
        return self._means("level", {"mIoU": "overlap", "success": "success"})


class ROICtrlBench(_Bench):
    """ROICtrl-Bench: how well do detections meet the boxes, and do crops match their captions?

    Args:
        detector: Finds instances by ``Instance.label``.
        judge: Says whether what is in the box is what the caption says.
    """

    def update(self, image: PIL.Image.Image, layout: Layout) -> None:
        """Adds a picture.

        Raises:
            DataError: If the layout has no instances.
        """
        overlaps = best_overlaps(image, layout, _detect(self.detector, image, layout))
        rights = self._judge(image, layout)
        for instance, overlap, right in zip(layout.instances, overlaps, rights, strict=True):
            self.rows.append(
                {
                    "layout": layout.name,
                    "track": layout.track or "all",
                    "caption": instance.caption,
                    "overlap": overlap,
                    "right": right,
                }
            )

    def compute(self) -> dict[str, Figures]:
        """``mIoU`` and ``accuracy`` of each track; ``average`` is the mean of the tracks'."""
        means = self._means("track", {"mIoU": "overlap", "accuracy": "right"})
        tracks = [means[name] for name in means if name != "average"]
        for title in means["average"]:
            means["average"][title] = _mean([figures[title] for figures in tracks])
        return means


class InstDiffBench:
    """InstDiff-Bench: what a detector finds against the boxes as COCO counts, and attributes.

    Args:
        detector: Finds instances; all that it finds counts, also what no box asks for.
        attributes: Says whether what is in the box has ``Instance.attribute``; those without one
            are not asked for.
        scorer: Gives the regional CLIP score of captions.
    """

    def __init__(
        self, detector: Detector, attributes: Judge | None = None, scorer: Scorer | None = None
    ):
        self.detector, self.attributes, self.scorer = detector, attributes, scorer
        self._images: list[dict] = []
        self._truth: list[tuple[int, str, list[float]]] = []
        self._found: list[tuple[int, str, list[float], float]] = []
        self._figures: dict[str, list[float]] = {"accuracy": [], "CLIP": []}

    def update(self, image: PIL.Image.Image, layout: Layout) -> None:
        """Adds a picture.

        Raises:
            DataError: If the layout has no instances.
        """
        number = len(self._images)
        self._images.append({"id": number, "width": image.width, "height": image.height})
        found = _detect(self.detector, image, layout)
        for instance in layout.instances:
            box = _to_coco(instance.in_pixels(*image.size))
            self._truth.append((number, instance.label, box))
        for label, box, score in zip(found.labels, found.boxes, found.scores, strict=True):
            self._found.append((number, label, _to_coco(box), float(score)))
        if self.attributes is not None:
            asked = [instance for instance in layout.instances if instance.attribute]
            if asked:
                crops = [crop(image, instance) for instance in asked]
                self._figures["accuracy"].append(_mean(self.attributes(crops, asked)))
        if self.scorer is not None:
            crops = [crop(image, instance) for instance in layout.instances]
            captions = [instance.caption for instance in layout.instances]
            self._figures["CLIP"].append(_mean(self.scorer(crops, captions)))

    def compute(self) -> Figures:
        """Average precisions and recall in percent; ``accuracy`` and ``CLIP``, means of pictures.

        Sizes are COCO's, in pixels of the pictures, which are of 512 x 512 in the benchmark; what
        there is nothing of is left out.
        """
        return {**self._precisions(), **{k: _mean(v) for k, v in self._figures.items() if v}}

    def _precisions(self) -> Figures:
        from faster_coco_eval import COCO, COCOeval_faster

        names = sorted({label for _, label, _ in self._truth})
        numbers = {name: number for number, name in enumerate(names, 1)}
        truth = COCO(
            {
                "images": self._images,
                "categories": [{"id": number, "name": name} for name, number in numbers.items()],
                "annotations": [
                    {
                        "id": index,
                        "image_id": image,
                        "category_id": numbers[label],
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                    for index, (image, label, box) in enumerate(self._truth, 1)
                ],
            }
        )
        found = [
            {"image_id": image, "category_id": numbers[label], "bbox": box, "score": score}
            for image, label, box, score in self._found
            if label in numbers
        ]
        titles = {
            "AP": "AP_all", "AP50": "AP_50", "AP_s": "AP_small", "AP_m": "AP_medium",
            "AP_l": "AP_large", "AR": "AR_third",
        }  # fmt: skip
        if not found:
            return {title: 0.0 for title in titles if title[2:3] != "_"}
        evaluation = COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=_silent)
        evaluation.run()
        stats = evaluation.stats_as_dict
        return {title: 100 * float(stats[key]) for title, key in titles.items() if stats[key] > -1}


def _silent(*_: object) -> None:
    """Prints nothing."""


def _to_coco(box: Sequence[float]) -> list[float]:
    x1, y1, x2, y2 = (float(side) for side in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(np.asarray(values, np.float64))) if len(values) else float("nan")
