"""Prompts on the image, before a network sees it."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ConvPrompter", "FramePrompter", "SimAM"]


class FramePrompter(nn.Module):
    """A learnable frame that is added to the image (VP).

    Args:
        img_size: Height and width of images.
        padding: Width of the frame in pixels.
        in_chans: Channels.

    Raises:
        ValueError: If the frame is wider than half the image.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        padding: int = 10,
        in_chans: int = 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        height, width = img_size
        if not 0 < padding <= min(height, width) // 2:
            raise ValueError(
                f"padding must be between 1 and {min(height, width) // 2}, half the image of "
                f"{height}x{width}; got {padding}"
            )
        self.img_size = (height, width)
        self.padding = padding
        sides = {
            "up": (padding, width),
            "down": (padding, width),
            "left": (height - 2 * padding, padding),
            "right": (height - 2 * padding, padding),
        }
        for name, shape in sides.items():
            side = torch.randn(1, in_chans, *shape, device=device, dtype=dtype)
            setattr(self, name, nn.Parameter(side))

    def frame(self) -> torch.Tensor:
        """The frame (1, C, H, W), zero inside."""
        inside = F.pad(self.left, (0, self.img_size[1] - 2 * self.padding))
        middle = torch.cat((inside, self.right), 3)
        return torch.cat((self.up, middle, self.down), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) with the frame.

        Raises:
            ValueError: If they are of another size.
        """
        if x.shape[2:] != self.img_size:
            raise ValueError(
                f"the frame is for images of {self.img_size}, not {tuple(x.shape[2:])}: resize "
                "them, or create the model with their img_size"
            )
        return x + self.frame()


class ConvPrompter(nn.Module):
    """A small convolutional network whose output is added to the image (IPrompt of TCPA).

    Args:
        in_chans: Channels; three times as many are hidden.
        kernel_size: Of both convolutions.
    """

    def __init__(
        self,
        in_chans: int = 3,
        kernel_size: int = 11,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        hidden, padding = 3 * in_chans, kernel_size // 2
        self.layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_chans, hidden, kernel_size, padding=padding, **dd),
                act=nn.PReLU(**dd),
                conv2=nn.Conv2d(hidden, in_chans, kernel_size, padding=padding, **dd),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the same shape."""
        return x + self.layers(x)


class SimAM(nn.Module):
    """A gate of the image without parameters, from how much a pixel stands out (SimAM).

    Args:
        regularisation: Added to the variance.
    """

    def __init__(self, regularisation: float = 1e-3):
        super().__init__()
        self.regularisation = regularisation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the same shape."""
        energy = (x - x.mean((2, 3), keepdim=True)).square()
        variance = energy.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        return x * (energy / (4 * (variance + self.regularisation)) + 0.5).sigmoid()
