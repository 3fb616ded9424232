"""Regions of interest as the ops on them take them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["as_pair", "as_rois", "is_channels_last", "memory_format", "without_autocast"]


def as_rois(boxes: torch.Tensor | Sequence[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Boxes in any form as rows (image, x1, y1, x2, y2), in at least fp32 and fp64 where ``x`` is.

    Args:
        boxes: (R, 5), or (B, R, 4) for R regions of each image, or (R, 4) for each image.
        x: What the boxes belong to.

    Raises:
        ValueError: If ``boxes`` are none of these.
    """
    if isinstance(boxes, torch.Tensor):
        rois = boxes
        if boxes.ndim == 3 and boxes.shape[2] == 4:
            image = torch.arange(boxes.shape[0], device=boxes.device)
            image = image[:, None, None].expand(-1, boxes.shape[1], 1)
            rois = torch.cat((image.to(boxes.dtype), boxes), 2).flatten(0, 1)
        elif boxes.ndim != 2 or boxes.shape[1] != 5:
            raise ValueError(
                "boxes must be (R, 5), (B, R, 4), or a list of one (R, 4) per image; got "
                f"{tuple(boxes.shape)}"
            )
    else:
        for i, part in enumerate(boxes):
            if part.ndim != 2 or part.shape[1] != 4:
                raise ValueError(f"boxes[{i}] must be (R, 4); got {tuple(part.shape)}")
        parts = [torch.nn.functional.pad(part, (1, 0), value=i) for i, part in enumerate(boxes)]
        rois = torch.cat(parts) if parts else x.new_empty(0, 5)
    if rois.device != x.device:
        raise ValueError(f"boxes must be on {x.device}; they are on {rois.device}")
    # Coordinates of thousands of pixels do not fit into half precision.
    return rois.detach().to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def as_pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """A size for both axes, or one each, as (height, width).

    Raises:
        ValueError: If it is not at least 1.
    """
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or pair[0] < 1 or pair[1] < 1:
        raise ValueError(f"{name} must be one or two numbers, at least 1; got {value}")
    return pair


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether the channels of a pixel (B, C, H, W) are neighbours in memory, and pixels are not."""
    return x.stride(1) == 1 and x.stride(3) != 1


def memory_format(channels_last: bool) -> torch.memory_format:
    """The format that results are in."""
    return torch.channels_last if channels_last else torch.contiguous_format


def without_autocast(x: torch.Tensor) -> AbstractContextManager:
    """A context in which products are in the dtype of their factors."""
    device = x.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
