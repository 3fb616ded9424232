"""Overlaps and non-maximum suppression of upright boxes, ``(x1, y1, x2, y2)`` in pixels."""

from collections.abc import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor

from .numeric import float32


def _areas(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)


def _intersections(boxes1: Tensor, boxes2: Tensor, offset: int) -> Tensor:
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:4], boxes2[..., 2:4])
    return (high - low + offset).clamp(min=0).prod(-1)


def _ious(boxes1: Tensor, boxes2: Tensor, offset: int) -> Tensor:
    inter = _intersections(boxes1, boxes2, offset)
    return inter / (_areas(boxes1, offset) + _areas(boxes2, offset) - inter)


def bbox_overlaps(
    boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """Overlaps of boxes, of all pairs or of aligned pairs.

    Args:
        boxes1: ``(N, 4)``.
        boxes2: ``(M, 4)``; with ``aligned``, ``M = N``.
        ious: Output, ``(N, M)``, or ``(N,)`` with ``aligned``.
        mode: 0 for intersection over union, 1 for intersection over the area of ``boxes1``.
        aligned: Whether to pair the boxes one to one.
        offset: 0 or 1, added to widths and heights.
    """
    first = boxes1 if aligned else boxes1[:, None]
    if mode == 0:
        ious.copy_(_ious(first, boxes2, offset))
    else:
        ious.copy_(_intersections(first, boxes2, offset) / _areas(first, offset))


def best_first(scores: Tensor) -> Tensor:
    """Indices by falling score; equal scores in the order of torch's sort, as mmcv has them."""
    return scores.sort(0, descending=True).indices


def greedy_groups(
    order: Tensor, suppresses: Callable[[Tensor, Tensor], Tensor]
) -> list[tuple[int, Tensor]]:
    """Greedy suppression: the best box left takes out all those it overlaps, and so on.

    Args:
        order: Indices of the boxes, best first, ``(N,)``.
        suppresses: Given the index of a kept box (0-d) and those of the boxes left ``(R,)``, which
            of the latter it suppresses ``(R,)``.

    Returns:
        Every kept index with those that it suppressed, best first.
    """
    groups = []
    while len(order):
        best, order = order[0], order[1:]
        hit = suppresses(best, order)
        groups.append((int(best), order[hit]))
        order = order[~hit]
    return groups


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: ``(N, 4)``.
        scores: ``(N,)``.
        iou_threshold: A box is suppressed above this overlap with a better one.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Indices of the kept boxes, best first.
    """
    threshold = float32(iou_threshold)
    order = best_first(scores)
    if offset == 0:
        ranks = torch.arange(len(order), 0, -1, device=boxes.device, dtype=boxes.dtype)
        return order[torchvision.ops.nms(boxes[order], ranks, threshold)]
    groups = greedy_groups(
        order, lambda best, rest: _ious(boxes[best], boxes[rest], offset) > threshold
    )
    return torch.tensor([kept for kept, _ in groups], dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy non-maximum suppression which says what was suppressed by what.

    Args:
        dets: Boxes and scores, ``(N, 5)``.
        iou_threshold: A box is suppressed from this overlap with a better one.

    Returns:
        For every kept box, best first: its index and those of the boxes it suppressed.
    """
    threshold = float32(iou_threshold)
    order = best_first(dets[:, 4].contiguous())
    groups = greedy_groups(order, lambda best, rest: _ious(dets[best], dets[rest], 0) >= threshold)
    return [[kept, *suppressed.tolist()] for kept, suppressed in groups]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Non-maximum suppression that lowers the scores of overlapping boxes (Bodla et al., 2017).

    Args:
        boxes: ``(N, 4)`` on CPU.
        scores: ``(N,)`` on CPU.
        dets: Output, ``(N, 5)``: in the first rows the kept boxes and their lowered scores.
        iou_threshold: From this overlap on scores are lowered (but by the Gaussian always).
        sigma: Variance of the Gaussian.
        min_score: Boxes whose lowered score is less are dropped.
        method: 0 drops overlapping boxes, 1 scales their scores by ``1 - IoU``, 2 by
            ``exp(-IoU² / sigma)``.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Indices of the kept boxes, in the order of selection.
    """
    corners = boxes.detach().numpy()
    dtype = corners.dtype.type
    iou_threshold, sigma, min_score = map(np.float32, (iou_threshold, sigma, min_score))
    areas = _areas(boxes.detach(), offset).numpy()
    left = np.arange(len(corners))
    score = scores.detach().numpy().astype(dtype)
    kept = []
    while len(left):
        # A score that is not a number (of boxes without area) never exceeds another.
        top = 0 if np.isnan(score[left[0]]) else np.nanargmax(score[left])
        best, left[top] = left[top], left[0]
        kept.append(best)
        left = left[1:]
        low = np.maximum(corners[best, :2], corners[left, :2])
        high = np.minimum(corners[best, 2:], corners[left, 2:])
        inter = np.maximum(high - low + dtype(offset), dtype(0)).prod(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = inter / (areas[best] + areas[left] - inter)
        if method == 2:
            weight = np.exp(-(iou * iou) / sigma)
        else:
            weight = np.where(iou >= iou_threshold, dtype(0) if method == 0 else 1 - iou, dtype(1))
        score[left] *= weight
        left = _drop(left, score[left] < min_score)
    index = torch.tensor(kept, dtype=torch.long)
    dets[: len(kept), :4] = boxes[index]
    dets[: len(kept), 4] = torch.from_numpy(score)[index]
    return index


def _drop(values: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Fills each place of a bad value with the last good one, which sets the order of equals."""
    count = len(values) - np.count_nonzero(bad)
    kept = values[:count].copy()
    holes = np.flatnonzero(bad[:count])
    kept[holes] = values[count:][~bad[count:]][::-1]
    return kept
