"""The embedding of boxes (ROICtrl, section 3.3)."""

from typing import Any

import torch
from torch import nn

__all__ = ["BoxEmbedding", "fourier_embedding"]


def fourier_embedding(boxes: torch.Tensor, frequencies: int = 8) -> torch.Tensor:
    """Sines and cosines of coordinates, in fp32 at least.

    Args:
        boxes: Corners, (..., 4).
        frequencies: Number T of frequencies 100^(t / T). There is no 2 pi in them.

    Returns:
        (..., 8 T): for each frequency the four sines, then the four cosines.
    """
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    t = torch.arange(frequencies, device=boxes.device, dtype=boxes.dtype)
    angles = boxes[..., None, :] * (100 ** (t / frequencies))[:, None]  # (..., T, 4)
    return torch.stack((angles.sin(), angles.cos()), -2).flatten(-3)


class BoxEmbedding(nn.Module):
    """Tokens of boxes: an MLP on their Fourier embedding; empty slots share a learned one.

    Args:
        frequencies: Frequencies of the embedding; tokens have 8 times as many channels.
        hidden_dim: Channels of hidden layers.
        device: Where weights are.
        dtype: Type of the weights.
    """

    def __init__(
        self,
        frequencies: int = 8,
        hidden_dim: int = 512,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.frequencies = frequencies
        dim = 8 * frequencies
        self.linears = nn.Sequential(
            nn.Linear(dim, hidden_dim, **dd),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim, **dd),
            nn.SiLU(),
            nn.Linear(hidden_dim, dim, **dd),
        )
        self.null_position_feature = nn.Parameter(torch.zeros(dim, **dd))

    def forward(self, boxes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Tokens (B, R, D) of boxes (B, R, 4), normalised to [0, 1], where masks (B, R) are set."""
        null = self.null_position_feature
        embedding = fourier_embedding(boxes, self.frequencies).to(null.dtype)
        return self.linears(torch.where(masks[..., None].bool(), embedding, null))
