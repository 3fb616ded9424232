"""Poolings that look at each channel by itself, and the class token as it is."""

import math

import torch
from torch import nn

from .base import Pooling

__all__ = ["ClassToken", "GeneralizedMeanPooling", "GlobalAveragePooling", "LogSumExpPooling"]


class GlobalAveragePooling(Pooling):
    """The mean of the tokens."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = self.out_features = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim)."""
        self.check(x)
        return x.mean(1)


class ClassToken(Pooling):
    """The first token, which the class token is."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = self.out_features = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim)."""
        self.check(x)
        return x[:, 0]


class LogSumExpPooling(Pooling):
    """A smooth maximum: ``log(mean(exp(r x))) / r``, with one learned sharpness.

    Args:
        dim: Width of the tokens.
        r: Sharpness at first; 0 would be the mean, infinity the maximum.
        learnable: Whether it is learned.
    """

    def __init__(self, dim: int, r: float = 10.0, learnable: bool = True):
        super().__init__()
        if not r > 0:
            raise ValueError(f"r must be above 0; got {r}")
        self.dim = self.out_features = dim
        self.r = nn.Parameter(torch.full((1,), float(r)), requires_grad=learnable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim)."""
        self.check(x)
        return ((self.r * x).logsumexp(1) - math.log(x.shape[1])) / self.r


class GeneralizedMeanPooling(Pooling):
    """The generalised mean (GeM) of what is positive: ``mean(x ** p) ** (1 / p)``.

    Args:
        dim: Width of the tokens.
        p: Exponent at first; 1 is the mean, infinity the maximum.
        eps: Lower bound of the features.
        learnable: Whether the exponent is learned.
    """

    def __init__(self, dim: int, p: float = 3.0, eps: float = 1e-6, learnable: bool = True):
        super().__init__()
        if not p > 0:
            raise ValueError(f"p must be above 0; got {p}")
        self.dim = self.out_features = dim
        self.eps = eps
        self.p = nn.Parameter(torch.full((1,), float(p)), requires_grad=learnable)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, dim) to (B, dim)."""
        self.check(x)
        return x.clamp(min=self.eps).pow(self.p).mean(1).pow(1 / self.p)
