"""The definition of the depthwise convolution in plain torch."""

import torch
import torch.nn.functional as F


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> torch.Tensor:
    """See ``visattn.kernels.depthwise_conv``."""
    padding = weight.shape[2] // 2, weight.shape[3] // 2
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding, groups=len(weight))
    out = out.permute(0, 2, 3, 1)
    return out if residual is None else residual + out
