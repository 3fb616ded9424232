"""The definition of efficient local attention in plain torch."""

import torch
import torch.nn.functional as F


def efficient_local_attention(
    x: torch.Tensor,
    conv_weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    norm_groups: int,
    eps: float,
) -> torch.Tensor:
    """See ``visattn.kernels.efficient_local_attention``."""
    groups = x.shape[1] // conv_weight.shape[1]

    def gate(strip: torch.Tensor) -> torch.Tensor:  # (B, C, L)
        strip = F.conv1d(strip, conv_weight, padding=conv_weight.shape[2] // 2, groups=groups)
        return F.group_norm(strip, norm_groups, norm_weight, norm_bias, eps).sigmoid()

    return x * gate(x.mean(3))[..., None] * gate(x.mean(2))[:, :, None]
