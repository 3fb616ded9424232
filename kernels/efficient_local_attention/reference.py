"""The definition of efficient local attention in plain torch."""

import torch
import torch.nn.functional as F


def gates(
    x: torch.Tensor,
    conv: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gates of rows (B, C, H) and of columns (B, C, W) of ``efficient_local_attention``."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    groups = x.shape[1] // conv.shape[2]
    result = []
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        for s, strip in enumerate((x.mean(3, dtype=dtype), x.mean(2, dtype=dtype))):
            kernel, scale, offset = (p[s % len(p)].to(dtype) for p in (conv, weight, bias))
            strip = F.conv1d(strip, kernel, padding=kernel.shape[2] // 2, groups=groups)
            strip = torch.group_norm(strip, norm_groups, scale, offset, eps)
            result.append(strip.sigmoid())
    return tuple(result)


def efficient_local_attention(
    x: torch.Tensor,
    conv: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_groups: int,
    eps: float,
) -> torch.Tensor:
    """See ``visattn.kernels.efficient_local_attention``.

    Parameters have a first dimension of 1, or of 2 for the H and the W strip.
    """
    rows, columns = gates(x, conv, weight, bias, norm_groups, eps)
    return (x * (rows[..., None] * columns[:, :, None])).to(x.dtype)
