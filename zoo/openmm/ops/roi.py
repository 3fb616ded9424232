"""Pooling of regions of interest, ``(batch index, x1, y1, x2, y2)`` in pixels of the image."""

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

from ....kernels import roi_align
from .numeric import float32, vjp

_MAX, _AVERAGE = 0, 1
_LOWEST_MAX = -10000.0


def _check_sizes(rois: Tensor, aligned: bool) -> None:
    if aligned and bool((rois[:, 3:] < rois[:, 1:3]).any()):
        raise RuntimeError(
            "roi_align with aligned=True got RoIs of negative size: give x1 <= x2 and y1 <= y2"
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pools bilinear samples on a regular grid in each bin (He et al., 2017).

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)``.
        output: Output, ``(N, C, aligned_height, aligned_width)``.
        argmax_y: Output when pooling by maximum: ordinates of the largest samples, of the output's
            shape; -1 where there is none.
        argmax_x: The same for abscissas.
        aligned_height: Bins of a region from top to bottom.
        aligned_width: Bins of a region from left to right.
        spatial_scale: Pixels of the input per pixel of the image.
        sampling_ratio: Samples along a side of a bin; up to 0, one per pixel begun.
        pool_mode: 0 for the maximum, 1 for the average.
        aligned: Whether pixel centres lie at half-integers.

    Raises:
        RuntimeError: If a region has negative size though ``aligned``.
    """
    _check_sizes(rois, aligned)
    size, scale = (aligned_height, aligned_width), float32(spatial_scale)
    if pool_mode == _AVERAGE:
        output.copy_(_average(input, rois, size, scale, sampling_ratio, aligned))
        return
    for part, ys, xs in _sample_grids(rois, size, scale, sampling_ratio, aligned):
        output[part], argmax_y[part], argmax_x[part] = _largest(input, rois[part, 0], ys, xs)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Derivative of :func:`roi_align_forward` by the input, added to ``grad_input``."""
    _check_sizes(rois, aligned)
    if pool_mode == _AVERAGE:
        size, scale = (aligned_height, aligned_width), float32(spatial_scale)
        (by_input,) = vjp(
            lambda x: _average(x, rois, size, scale, sampling_ratio, aligned),
            (grad_input,),
            grad_output,
        )
        grad_input.add_(by_input)
        return
    batch, channels, height, width = grad_input.shape
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    start = plane[:, :, None, None] * (height * width)
    flat = torch.zeros_like(grad_input, memory_format=torch.contiguous_format).view(-1)
    found = argmax_y != -1
    for pixel, weight in _corners(argmax_y, argmax_x, height, width):
        share = torch.where(found, weight * grad_output, 0)
        flat.index_add_(0, (start + pixel).flatten(), share.flatten())
    grad_input.add_(flat.view(batch, channels, height, width))


def _average(
    input: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Average pooling ``(N, C, *size)``, differentiable by the input."""
    if sampling_ratio > 0 or input.dtype != torch.double or not len(rois):
        # Ours is faster on CPUs; on GPUs that is not measured.
        pool = roi_align if input.device.type == "cpu" else torchvision.ops.roi_align
        return pool(input, rois, size, scale, sampling_ratio, aligned)
    # mmcv rounds the size of a bin to single precision before it counts the samples.
    output = input.new_zeros(len(rois), input.shape[1], *size)
    for part, ys, xs in _sample_grids(rois, size, scale, sampling_ratio, aligned):
        values, _, _ = _samples(input, rois[part, 0], ys, xs)
        output = output.index_copy(0, part, values.sum(-1) / max(1, values.shape[-1]))
    return output


def _sample_grids(
    rois: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Sample coordinates by groups of regions whose bins have the same numbers of samples.

    Yields the regions' indices ``(M,)``, the ordinates ``(M, bins, samples)`` and the abscissas.
    """
    shift = 0.5 if aligned else 0.0
    start = rois[:, [2, 1]] * scale - shift
    extent = rois[:, [4, 3]] * scale - shift - start
    if not aligned:
        extent = extent.clamp(min=1)
    bins = extent / extent.new_tensor(size)
    if sampling_ratio > 0:
        counts = torch.full_like(bins, sampling_ratio, dtype=torch.long)
    else:
        counts = bins.float().ceil().long()
    for count in counts.unique(dim=0):
        part = (counts == count).all(1).nonzero()[:, 0]
        yield (
            part,
            *(
                _coordinates(start[part, axis], bins[part, axis], size[axis], int(count[axis]))
                for axis in (0, 1)
            ),
        )


def _coordinates(start: Tensor, step: Tensor, bins: int, samples: int) -> Tensor:
    start, step = start[:, None, None], step[:, None, None]
    left = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None] * step
    middle = torch.arange(samples, device=start.device, dtype=start.dtype) + 0.5
    return start + left + middle * step / samples


def _samples(input: Tensor, image: Tensor, ys: Tensor, xs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear samples of every bin ``(M, C, bins, bins, S)`` and their coordinates, without C."""
    m, rows, samples_y = ys.shape
    columns, samples_x = xs.shape[1:]
    channels, height, width = input.shape[1:]
    y = ys[:, :, None, :, None].expand(m, rows, columns, samples_y, samples_x).flatten(3)
    x = xs[:, None, :, None, :].expand(m, rows, columns, samples_y, samples_x).flatten(3)
    planes = input.flatten(2)[image.long()]
    values = input.new_zeros(m, channels, *y.shape[1:])
    for pixel, weight in _corners(y, x, height, width):
        index = pixel.flatten(1)[:, None].expand(-1, channels, -1)
        values = values + planes.gather(2, index).view_as(values) * weight[:, None]
    return values, y, x


def _largest(input: Tensor, image: Tensor, ys: Tensor, xs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest sample of every bin and its coordinates, ``(M, C, bins, bins)`` each."""
    values, y, x = _samples(input, image, ys, xs)
    if not values.shape[-1]:
        empty = values.new_full(values.shape[:-1], -1)
        return torch.full_like(empty, _LOWEST_MAX), empty, empty
    value, place = torch.where(values > _LOWEST_MAX, values, _LOWEST_MAX).max(-1)
    found = value > _LOWEST_MAX
    at = (c[:, None].expand_as(values).gather(-1, place[..., None])[..., 0] for c in (y, x))
    return value, *(torch.where(found, c, -1) for c in at)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around each point, as indices into the plane, and their weights.

    Points further than one pixel outside have weights 0; those less far are moved to the border.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, along = y - top, x - left
    for row, column, weight in (
        (top, left, (1 - down) * (1 - along)),
        (top, right, (1 - down) * along),
        (bottom, left, down * (1 - along)),
        (bottom, right, down * along),
    ):
        yield row * width + column, weight * inside


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Largest pixel of every bin of every region (Girshick, 2015), without rounding the regions.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(N, 5)``, their last pixels included.
        output: Output, ``(N, C, pooled_height, pooled_width)``; empty bins give 0, and regions of
            no area leave it as it is.
        argmax: Output of the same shape, int32: index of the pixel in its plane, or -1.
        pooled_height: Bins of a region from top to bottom.
        pooled_width: Bins of a region from left to right.
        spatial_scale: Pixels of the input per pixel of the image.
    """
    height, width = input.shape[2:]
    scale = float32(spatial_scale)
    start = rois[:, 1:3] * scale
    extent = (rois[:, 3:] + 1) * scale - start
    x1, x2 = _bin_bounds(start[:, 0], extent[:, 0], pooled_width, width)
    y1, y2 = _bin_bounds(start[:, 1], extent[:, 1], pooled_height, height)
    for n in (extent > 0).all(1).nonzero()[:, 0].tolist():
        plane = input[int(rois[n, 0])]
        for i, (top, bottom) in enumerate(zip(y1[n].tolist(), y2[n].tolist(), strict=True)):
            for j, (left, right) in enumerate(zip(x1[n].tolist(), x2[n].tolist(), strict=True)):
                if top >= bottom or left >= right:
                    output[n, :, i, j], argmax[n, :, i, j] = 0, -1
                    continue
                value, place = plane[:, top:bottom, left:right].flatten(1).max(1)
                row, column = place // (right - left), place % (right - left)
                output[n, :, i, j] = value
                argmax[n, :, i, j] = ((top + row) * width + left + column).int()


def _bin_bounds(start: Tensor, extent: Tensor, bins: int, limit: int) -> tuple[Tensor, Tensor]:
    step = (extent / bins)[:, None]
    edges = torch.arange(bins + 1, device=start.device, dtype=start.dtype) * step + start[:, None]
    low, high = edges[:, :-1].floor(), edges[:, 1:].ceil()
    return low.clamp(0, limit).long(), high.clamp(0, limit).long()


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Derivative of :func:`roi_pool_forward` by the input, added to ``grad_input``."""
    batch, channels, height, width = grad_input.shape
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    index = plane[:, :, None, None] * (height * width) + argmax
    found = argmax >= 0
    flat = torch.zeros_like(grad_input, memory_format=torch.contiguous_format).view(-1)
    flat.index_add_(0, index[found], grad_output[found])
    grad_input.add_(flat.view(batch, channels, height, width))
