"""Padding and cropping of channels-last maps, of sizes that may be symbolic."""

import torch
import torch.nn.functional as F

__all__ = ["crop", "pad"]


def pad(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pads a map (B, H, W, C) with zeros at the bottom and right to a size."""
    bottom, right = height - x.shape[1], width - x.shape[2]
    return x if _are_zero(bottom, right) else F.pad(x, (0, 0, 0, right, 0, bottom))


def crop(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The top left part (B, height, width, ...) of a map (B, H, W, ...)."""
    if _are_zero(x.shape[1] - height, x.shape[2] - width):
        return x
    x = x.index_select(1, torch.arange(height, device=x.device))
    return x.index_select(2, torch.arange(width, device=x.device))


def _are_zero(*sizes: int) -> bool:
    """Whether all sizes are known to be 0; symbolic ones are not, so that no guard is made."""
    return all(isinstance(size, int) and size == 0 for size in sizes)
