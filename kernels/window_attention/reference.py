"""The definition of window attention in plain torch."""

import torch
import torch.nn.functional as F


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """See ``visattn.kernels.window_attention``."""
    height, width = q.shape[1:3]
    regions = _regions(height, width, window, shift, q.device)
    # Padding belongs to no region; a row of it alone attends to itself, and is cropped.
    regions = _partition(_shifted(regions[None, ..., None], window, shift, pad=-1), window)
    same = regions == regions.transpose(-2, -1)  # (1, windows, tokens, tokens)

    q, k, v = (
        _partition(_shifted(x.flatten(3), window, shift), window)
        .unflatten(-1, x.shape[3:])
        .transpose(2, 3)
        for x in (q, k, v)
    )
    logits = (q * scale) @ k.transpose(-2, -1)  # (B, windows, heads, tokens, tokens)
    if bias is not None:
        logits = logits + bias
    logits = logits.masked_fill(~same[:, :, None], float("-inf"))
    attention = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    out = (attention.to(v.dtype) @ v).transpose(2, 3)  # (B, windows, tokens, heads, dim)

    rows, columns = -(-height // window[0]), -(-width // window[1])
    out = out.unflatten(2, window).unflatten(1, (rows, columns)).transpose(2, 3)
    out = out.flatten(3, 4).flatten(1, 2).roll(shift, (1, 2))
    return out[:, :height, :width]


def _regions(
    height: int, width: int, window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """Numbers (H, W) of the regions whose tokens may attend to each other within a window.

    The first ``shift`` rows and columns are wrapped into windows of the opposite border.
    """
    y = torch.arange(height, device=device)[:, None]
    x = torch.arange(width, device=device)
    return (y < shift[0]) * 2 + (x < shift[1]) * 1


def _shifted(
    x: torch.Tensor, window: tuple[int, int], shift: tuple[int, int], pad: float = 0
) -> torch.Tensor:
    """A map (B, H, W, C) filled up to whole windows and rolled up and left."""
    bottom, right = (-size % side for size, side in zip(x.shape[1:3], window, strict=True))
    x = F.pad(x, (0, 0, 0, right, 0, bottom), value=pad)
    return x.roll((-shift[0], -shift[1]), (1, 2))


def _partition(x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """A map (B, H, W, C) of whole windows to (B, windows, tokens, C)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
