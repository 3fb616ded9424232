"""The definition of RoIAlign in plain torch, by the separability of bilinear interpolation."""

import torch

from .._rois import is_channels_last, memory_format, without_autocast


def roi_align(
    x: torch.Tensor,
    rois: torch.Tensor,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """See ``visattn.kernels.roi_align``; regions are rows (image, x1, y1, x2, y2)."""
    batch, _, height, width = x.shape
    with without_autocast(x):
        wy = _weights(rois[:, 2::2], size[0], height, scale, sampling_ratio, aligned)
        wx = _weights(rois[:, 1::2], size[1], width, scale, sampling_ratio, aligned)
        own = rois[:, :1].long() == torch.arange(batch, device=x.device)  # (R, B)
        wy = wy[:, None] * own[:, :, None, None]  # (R, B, P, H)
        across = torch.einsum("bchw,rqw->rbhcq", x.to(rois.dtype), wx)
        out = torch.einsum("rbph,rbhcq->rcpq", wy, across).to(x.dtype)
    return out.contiguous(memory_format=memory_format(is_channels_last(x)))


def _weights(
    corners: torch.Tensor,
    bins: int,
    side: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """Weights (R, bins, side) of the pixels along an axis, for regions from corner to corner."""
    shift = 0.5 if aligned else 0.0
    start = corners[:, 0] * scale - shift
    extent = corners[:, 1] * scale - shift - start
    if not aligned:
        extent = extent.clamp(min=1)
    step = (extent / bins)[:, None, None, None]
    row = torch.arange(bins, device=corners.device)[:, None, None]
    origin = start[:, None, None, None] + row * step  # (R, bins, 1, 1)
    pixel = torch.arange(side, device=corners.device)[:, None]  # (side, 1)
    if sampling_ratio > 0:
        count = torch.full_like(step, sampling_ratio)
        sample = torch.arange(sampling_ratio, device=corners.device)
    else:
        # Samples are more than half a pixel apart if there are several: no more than four of them
        # are less than one pixel away from a pixel. Rounding may need one more at either side.
        count = step.ceil()
        spacing = (step / count).clamp(min=torch.finfo(step.dtype).tiny)
        first = ((pixel - 1 - origin) / spacing - 0.5).floor().clamp(min=0)
        sample = first + torch.arange(6, device=corners.device)  # (R, bins, side, 6)
    position = origin + (sample + 0.5) * step / count
    on_the_map = (position >= -1) & (position <= side) & (sample < count)
    distance = (position.clamp(0, side - 1) - pixel).abs()
    weight = torch.where(on_the_map, (1 - distance).clamp(min=0), 0).sum(-1)
    return weight / count[..., 0].clamp(min=1)
