"""The definition of ROI-Unpool in plain torch, by the separability of bilinear interpolation."""

import torch

from .._rois import is_channels_last, memory_format, without_autocast

TOLERANCE = 1e-5
"""How far behind the centre of the last bin a pixel may be; rounding, no more."""


def roi_unpool(
    rois: torch.Tensor,
    boxes: torch.Tensor,
    size: tuple[int, int],
    scale: float,
    aligned: bool,
) -> torch.Tensor:
    """See ``visattn.kernels.roi_unpool``; boxes are rows (x1, y1, x2, y2)."""
    with without_autocast(rois):
        wy = _weights(boxes[:, 1::2] * scale, rois.shape[2], size[0], aligned)
        wx = _weights(boxes[:, ::2] * scale, rois.shape[3], size[1], aligned)
        out = wy[:, None] @ rois.to(boxes.dtype) @ wx[:, None].transpose(-2, -1)
    return out.to(rois.dtype).contiguous(memory_format=memory_format(is_channels_last(rois)))


def _weights(corners: torch.Tensor, bins: int, side: int, aligned: bool) -> torch.Tensor:
    """Weights (R, side, bins) of the bins along an axis, for boxes from corner to corner."""
    pixel = torch.arange(side, device=corners.device)
    first, end = (corners - 0.5).ceil()[:, :, None].unbind(1)  # (R, 1)
    start, stop = corners[:, :, None].unbind(1)
    visible = (pixel >= first) & (pixel < end)  # (R, side)
    if aligned:
        place = (pixel + 0.5 - start) / (stop - start) * bins - 0.5
        place = place.clamp(0, bins - 1)
    else:
        place = (pixel - first) / (end - first) * bins
        visible = visible & (place < bins - 1 + TOLERANCE)
    distance = (place[:, :, None] - torch.arange(bins, device=corners.device)).abs()
    return torch.where(visible[:, :, None], (1 - distance).clamp(min=0), 0)
