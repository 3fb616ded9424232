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
    out = _attend(q, k, v, same, bias, scale)

    rows, columns = -(-height // window[0]), -(-width // window[1])
    out = out.unflatten(2, window).unflatten(1, (rows, columns)).transpose(2, 3)
    out = out.flatten(3, 4).flatten(1, 2).roll(shift, (1, 2))
    return out[:, :height, :width]


def window_attention_of_any_size(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    bias: torch.Tensor | None,
    scale: float,
    shift_small_maps: bool,
) -> torch.Tensor:
    """``window_attention`` of maps whose sizes are symbols, as in exported programs.

    Windows are read by indices: reshaping a map to them would need a proof of how many there are.
    """
    size = q.shape[1:3]
    # Shifted windows are those of a map with masked tokens before its first.
    before = [(side - offset) % side for side, offset in zip(window, shift, strict=True)]
    rows, columns = (
        (length + offset + side - 1) // side
        for length, offset, side in zip(size, before, window, strict=True)
    )
    if any(shift) and not shift_small_maps:
        height, width = (torch.full((), length, device=q.device) for length in size)
        is_shifted = (height > window[0]) & (width > window[1])
        before = [torch.where(is_shifted, offset, 0) for offset in before]
    top, left = before
    # One window more, that is never read: a program for several windows is none for a single one.
    i = torch.arange(rows * columns + 1, device=q.device)[:, None]
    t = torch.arange(window[0] * window[1], device=q.device)
    y = i // columns * window[0] + t // window[1] - top  # (windows, tokens)
    x = i % columns * window[1] + t % window[1] - left
    inside = (y >= 0) & (y < size[0]) & (x >= 0) & (x < size[1])
    index = torch.where(inside, y * size[1] + x, 0)
    q, k, v = (z.flatten(1, 2)[:, index].transpose(2, 3) for z in (q, k, v))
    out = _attend(q, k, v, inside[:, None], bias, scale)

    y = torch.arange(size[0], device=q.device)[:, None] + top
    x = torch.arange(size[1], device=q.device) + left
    windows = y // window[0] * columns + x // window[1]
    return out[:, windows, y % window[0] * window[1] + x % window[1]]


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attention (B, windows, tokens, heads, dim) within windows (B, windows, heads, tokens, dim).

    Of a window's tokens each attends to those that ``mask`` has, (..., windows, tokens, tokens),
    or one row for all of them.
    """
    logits = (q * scale) @ k.transpose(-2, -1)  # (B, windows, heads, tokens, tokens)
    if bias is not None:
        logits = logits + bias
    logits = logits.masked_fill(~mask.unsqueeze(-3), float("-inf"))
    attention = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return (attention.to(v.dtype) @ v).transpose(2, 3)


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
