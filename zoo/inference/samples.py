"""Data samples of mmdet and mmseg, to results and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..registry import register_all
from .results import Detection, Panoptic, Result, Segmentation, Size

NO_CLASS = 255


def read_predictions(
    sample: Any,
    names: Sequence[str],
    path: str | None,
    size: Size,
    score_threshold: float = 0.0,
) -> Result:
    """What a model predicted.

    Args:
        sample: ``DetDataSample`` or ``SegDataSample`` with predictions; a panoptic map goes before
            a semantic one, and that before instances.
        names: Names of classes.
        path: File of the image.
        size: Its height and width.
        score_threshold: Least score of an instance.
    """
    if "pred_panoptic_seg" in sample:
        return _panoptic(_map_of(sample.pred_panoptic_seg), names, path, size)
    if "pred_sem_seg" in sample:
        return _segmentation(_map_of(sample.pred_sem_seg), names, path, size)
    found = sample.pred_instances
    found = found[found.scores >= score_threshold]
    found = found[found.scores.argsort(descending=True)]
    return _detection(found, names, path, size, found.scores.cpu().numpy())


def read_truth(sample: Any, names: Sequence[str], path: str | None, size: Size) -> Result | None:
    """The annotations of a sample, as a result without scores; None if it has none."""
    if "gt_panoptic_seg" in sample:
        return _panoptic(_map_of(sample.gt_panoptic_seg), names, path, size)
    if "gt_sem_seg" in sample:
        return _segmentation(_map_of(sample.gt_sem_seg), names, path, size)
    if "gt_instances" in sample:
        return _detection(sample.gt_instances, names, path, size, None)
    return None


def to_sample(result: Result, num_classes: int) -> Any:
    """A result as predictions of mmdet, or as truth if it is of instances without scores."""
    # Before mmdet is imported, which looks for mmcv's operators then.
    register_all("mmdet")
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData, PixelData

    sample = DetDataSample()
    if isinstance(result, Segmentation):
        sample.pred_sem_seg = PixelData(sem_seg=torch.tensor(result.map)[None])
        sample.pred_sem_seg.set_metainfo({"ignore_index": NO_CLASS})
    elif isinstance(result, Panoptic):
        sample.pred_panoptic_seg = PixelData(
            sem_seg=torch.from_numpy(_to_ids(result, num_classes))[None]
        )
    else:
        data = {
            "bboxes": torch.from_numpy(result.boxes),
            "labels": torch.from_numpy(result.classes),
        }
        if result.masks is not None:
            data["masks"] = torch.from_numpy(result.masks)
        if result.scores is None:
            sample.gt_instances = InstanceData(**data)
        else:
            sample.pred_instances = InstanceData(scores=torch.from_numpy(result.scores), **data)
    return sample


def _detection(
    found: Any, names: Sequence[str], path: str | None, size: Size, scores: np.ndarray | None
) -> Detection:
    classes = found.labels.cpu().numpy()
    boxes = found.bboxes
    boxes = getattr(boxes, "tensor", boxes).detach().cpu().numpy().astype(np.float32)
    masks = found.get("masks")
    if masks is not None:
        masks = masks.cpu().numpy() if isinstance(masks, torch.Tensor) else masks.to_ndarray()
        masks = masks.astype(bool)
    return Detection(path, size, [names[i] for i in classes], scores, classes, boxes, masks)


def _segmentation(
    numbers: np.ndarray, names: Sequence[str], path: str | None, size: Size
) -> Segmentation:
    narrow = np.uint8 if len(names) <= NO_CLASS else np.int32
    return Segmentation(path, size, numbers.astype(narrow), list(names))


def _panoptic(ids: np.ndarray, names: Sequence[str], path: str | None, size: Size) -> Panoptic:
    from mmdet.evaluation.functional import INSTANCE_OFFSET

    found = np.unique(ids)
    found = found[found % INSTANCE_OFFSET < len(names)]
    segments = np.zeros(ids.shape, np.int32)
    for number, key in enumerate(found, 1):
        segments[ids == key] = number
    classes = found % INSTANCE_OFFSET
    return Panoptic(path, size, segments, [names[i] for i in classes], classes)


def _to_ids(result: Panoptic, num_classes: int) -> np.ndarray:
    """Numbers of segments as mmdet has them: class + 1000 * instance, or beyond all classes."""
    from mmdet.evaluation.functional import INSTANCE_OFFSET

    numbers = INSTANCE_OFFSET * np.arange(1, len(result.classes) + 1) + result.classes
    return np.concatenate([[num_classes], numbers])[result.map]


def _map_of(pixels: Any) -> np.ndarray:
    """The map (H, W) of a ``PixelData`` of mmdet or mmseg."""
    numbers = pixels.get("sem_seg", pixels.get("data"))
    return torch.as_tensor(numbers).squeeze(0).cpu().numpy()
