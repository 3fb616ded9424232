"""What detectors and segmentors take for what: matrices of confusion, counted while testing."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torchvision.ops import box_iou

from ..errors import DataError
from ..files import replacing

BACKGROUND = "background"


def match_instances(
    boxes: torch.Tensor,
    labels: torch.Tensor,
    scores: torch.Tensor,
    true_boxes: torch.Tensor,
    true_labels: torch.Tensor,
    num_classes: int,
    iou_threshold: float = 0.5,
    crowds: torch.Tensor | None = None,
) -> np.ndarray:
    """Counts which true instances of an image were taken for what.

    In the order of their scores, detections take the true instance that they overlap most and that
    none has taken, whatever its class. A detection without one is of the background, and so is what
    was made of a true instance that none took.

    Args:
        boxes: Detections, (N, 4).
        labels: Their classes, (N,).
        scores: Their scores, (N,).
        true_boxes: Annotations, (M, 4).
        true_labels: Their classes, (M,).
        num_classes: Number of classes.
        iou_threshold: Least overlap.
        crowds: Annotations of crowds, (K, 4): detections that take nothing, and lie in one by
            ``iou_threshold`` of their area, do not count.

    Returns:
        Counts, (classes + 1, classes + 1): true classes down, detected ones across; the last of
        either is the background.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    overlaps = box_iou(boxes, true_boxes)
    is_free = torch.ones(len(true_boxes), dtype=torch.bool)
    for index in scores.argsort(descending=True, stable=True).tolist():
        candidates = overlaps[index].where(is_free, -1)
        best = int(candidates.argmax()) if len(candidates) else -1
        if best >= 0 and candidates[best] >= iou_threshold:
            is_free[best] = False
            matrix[true_labels[best], labels[index]] += 1
        elif crowds is None or not _lies_in(boxes[index], crowds, iou_threshold):
            matrix[num_classes, labels[index]] += 1
    for label in true_labels[is_free].tolist():
        matrix[label, num_classes] += 1
    return matrix


def _lies_in(box: torch.Tensor, crowds: torch.Tensor, share: float) -> bool:
    low = torch.maximum(box[:2], crowds[:, :2])
    high = torch.minimum(box[2:], crowds[:, 2:])
    area = (box[2:] - box[:2]).prod()
    return bool(((high - low).clamp(min=0).prod(1) >= share * area).any())


class _Confusion(BaseMetric):
    """Writes a matrix of confusion as JSON.

    The file has ``rows`` and ``columns``: names of the annotated and of the predicted; ``matrix``:
    counts; and ``num_classes``: how many of the names are classes, which come first.

    Args:
        out_file: Path of the JSON file.
    """

    default_prefix = "confusion"

    def __init__(self, out_file: str, collect_device: str = "cpu", prefix: str | None = None):
        super().__init__(collect_device, prefix)
        self.out_file = Path(out_file)

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        classes = list(self.dataset_meta["classes"])
        names = [*classes, *self._more_names()]
        content = {
            "rows": names,
            "columns": names,
            "num_classes": len(classes),
            "matrix": sum(results).tolist(),
        }
        with replacing(self.out_file) as path:
            path.write_text(json.dumps(content))
        return {}

    def _more_names(self) -> list[str]:
        return []


@METRICS.register_module()
class DetectionConfusion(_Confusion):
    """Which instances a detector takes for what, by their boxes; see ``match_instances``.

    Args:
        out_file: Path of the JSON file.
        score_threshold: Least score of a detection.
        iou_threshold: Least overlap of a detection with what it is of.
    """

    def __init__(
        self,
        out_file: str,
        score_threshold: float = 0.3,
        iou_threshold: float = 0.5,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(out_file, collect_device, prefix)
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        num_classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            truth = _require(sample, "gt_instances")
            found = sample["pred_instances"]
            is_sure = found["scores"] >= self.score_threshold
            crowds = sample.get("ignored_instances", {}).get("bboxes")
            self.results.append(
                match_instances(
                    *(found[key][is_sure].cpu() for key in ("bboxes", "labels", "scores")),
                    _to_boxes(truth["bboxes"]),
                    truth["labels"].cpu(),
                    num_classes,
                    self.iou_threshold,
                    None if crowds is None else _to_boxes(crowds),
                )
            )

    def _more_names(self) -> list[str]:
        return [BACKGROUND]


@METRICS.register_module()
class SegmentationConfusion(_Confusion):
    """Which pixels a segmentor takes for what.

    Args:
        out_file: Path of the JSON file.
        ignore_index: Annotation of pixels that do not count.
    """

    def __init__(
        self,
        out_file: str,
        ignore_index: int = 255,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(out_file, collect_device, prefix)
        self.ignore_index = ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        size = len(self.dataset_meta["classes"])
        for sample in data_samples:
            truth = _require(sample, "gt_sem_seg")["data"].squeeze().cpu().long()
            found = sample["pred_sem_seg"]["data"].squeeze().cpu().long()
            counts = truth != self.ignore_index
            pairs = size * truth[counts] + found[counts]
            matrix = torch.bincount(pairs, minlength=size**2)[: size**2]
            self.results.append(matrix.view(size, size).numpy())


def _require(sample: dict[str, Any], key: str) -> Any:
    if key not in sample:
        raise DataError(
            f"{sample.get('img_path', 'an image')} comes without annotations, which a report "
            "needs: add dict(type='LoadAnnotations', ...) to the test pipeline"
        )
    return sample[key]


def _to_boxes(boxes: Any) -> torch.Tensor:
    return torch.as_tensor(getattr(boxes, "tensor", boxes)).cpu().float()
