"""Overlaps and suppression of rotated boxes, ``(x, y, width, height, angle in radians)``."""

import torch
from torch import Tensor

from .boxes import best_first, greedy_groups
from .numeric import float32

_PARALLEL = 1e-14
_EMPTY = 1e-14
_PAIRS_AT_ONCE = 1 << 16


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - b[..., 0] * a[..., 1]


def _vertices(boxes: Tensor, centre: Tensor) -> Tensor:
    """Corners ``(..., 4, 2)`` around ``centre``, ``(..., 2)``."""
    angle = boxes[..., 4].double()
    cos, sin = (f(angle).to(boxes.dtype) * 0.5 for f in (torch.cos, torch.sin))
    width, height = boxes[..., 2], boxes[..., 3]
    across = torch.stack((cos * width, sin * width), -1)
    down = torch.stack((-sin * height, cos * height), -1)
    first, second = centre + down - across, centre - down - across
    return torch.stack((first, second, 2 * centre - first, 2 * centre - second), -2)


def _inside(points: Tensor, vertices: Tensor) -> Tensor:
    """Whether ``(..., 4, 2)`` points lie in the rectangle of the vertices, ``(..., 4)``."""
    origin = vertices[..., :1, :]
    sides = (vertices[..., [1, 3], :] - origin)[..., None, :, :]
    along = ((points - origin)[..., None, :] * sides).sum(-1)
    return ((along >= 0) & (along <= sides.square().sum(-1))).all(-1)


def _intersections(one: Tensor, two: Tensor) -> Tensor:
    """Area common to rectangles given by their corners ``(P, 4, 2)``, ``(P,)``."""
    sides1, sides2 = (v.roll(-1, dims=1) - v for v in (one, two))
    u, v = sides1[:, :, None], sides2[:, None]
    between = two[:, None] - one[:, :, None]
    det = _cross(v, u)
    t1, t2 = _cross(v, between) / det, _cross(u, between) / det
    crosses = (det.abs() > _PARALLEL) & (t1 >= 0) & (t1 <= 1) & (t2 >= 0) & (t2 <= 1)
    crossings = (one[:, :, None] + u * t1[..., None]).flatten(1, 2)
    points = torch.cat((crossings, one, two), 1)
    valid = torch.cat((crosses.flatten(1), _inside(one, two), _inside(two, one)), 1)
    return _convex_areas(points, valid)


def _convex_areas(points: Tensor, valid: Tensor) -> Tensor:
    """Areas of convex polygons from their valid corners in any order, ``(P, K, 2)`` to ``(P,)``."""
    first = valid.int().argmax(1)[:, None, None].expand(-1, 1, 2)
    points = torch.where(valid[..., None], points, points.gather(1, first))
    count = valid.sum(1)
    centre = (points * valid[..., None]).sum(1) / count.clamp(min=1)[:, None]
    points = points - centre[:, None]
    order = torch.atan2(points[..., 1], points[..., 0]).argsort(1)
    points = points.gather(1, order[..., None].expand_as(points))
    areas = _cross(points, points.roll(-1, dims=1)).sum(1).abs() / 2
    return torch.where(count > 2, areas, 0)


def _overlaps(boxes1: Tensor, boxes2: Tensor, mode: int) -> Tensor:
    """Overlaps of aligned pairs ``(P, 5)``, ``(P,)``."""
    middle = (boxes1[:, :2] + boxes2[:, :2]) / 2
    one, two = (_vertices(boxes, boxes[:, :2] - middle) for boxes in (boxes1, boxes2))
    inter = _intersections(one, two)
    area1, area2 = boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3]
    base = area1 + area2 - inter if mode == 0 else area1
    return torch.where((area1 < _EMPTY) | (area2 < _EMPTY), 0, inter / base)


def box_iou_rotated(
    boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool
) -> None:
    """Overlaps of rotated boxes, of all pairs or of aligned pairs.

    Args:
        boxes1: ``(N, 5)``.
        boxes2: ``(M, 5)``; with ``aligned``, ``M = N``.
        ious: Output, ``(N * M,)``, or ``(N,)`` with ``aligned``.
        mode_flag: 0 for intersection over union, 1 for intersection over the area of ``boxes1``.
        aligned: Whether to pair the boxes one to one.
    """
    if not ious.numel():
        return
    if aligned:
        ious.copy_(_overlaps(boxes1, boxes2, mode_flag))
        return
    count = len(boxes2)
    rows = max(1, _PAIRS_AT_ONCE // count)
    for some, part in zip(boxes1.split(rows), ious.split(rows * count), strict=True):
        pairs = some.repeat_interleave(count, 0), boxes2.repeat(len(some), 1)
        part.copy_(_overlaps(*pairs, mode_flag))


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Greedy non-maximum suppression of rotated boxes.

    Args:
        dets: ``(N, 5)``, or ``(N, 6)`` with the labels in the last column.
        scores: ``(N,)``.
        order: Not needed.
        dets_sorted: Not needed.
        labels: Not needed.
        iou_threshold: A box is suppressed from this overlap with a better one.
        multi_label: Whether boxes of different labels leave each other alone. On CPU mmcv takes no
            notice of labels, nor does this.

    Returns:
        Indices of the kept boxes, best first.
    """
    threshold = float32(iou_threshold)
    by_label = multi_label and dets.device.type != "cpu"

    def suppresses(best: Tensor, rest: Tensor) -> Tensor:
        one, others = dets[best].expand(len(rest), -1), dets[rest]
        hit = _overlaps(one, others, 0) >= threshold
        return hit & (one[:, 5] == others[:, 5]) if by_label else hit

    groups = greedy_groups(best_first(scores), suppresses)
    return torch.tensor([kept for kept, _ in groups], dtype=torch.long, device=dets.device)
