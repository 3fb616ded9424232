"""Windows of channels-last maps, of sizes that may be symbolic."""

import torch
import torch.nn.functional as F

from ..kernels import window_attention

__all__ = ["StripeConv", "attend_in_windows"]

Size = tuple[int, int]


def attend_in_windows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: Size,
    shift: int = 0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``visattn.kernels.window_attention``, that also exports where sizes are dynamic.

    Exported programs read windows by indices: reshaping a map to them would need a proof of how
    many there are.

    Args:
        q: Queries, (B, H, W, heads, dim).
        k: Keys, as ``q``.
        v: Values, as ``q``.
        window: Rows and columns of a window.
        shift: Tokens that windows are displaced by, down and right, unless a side of the map is no
            longer than that of a window.
        bias: Added to the logits, (heads, tokens, tokens).

    Returns:
        (B, H, W, heads, dim).
    """
    size = q.shape[1:3]
    if not torch.compiler.is_exporting():
        if shift and any(side <= length for side, length in zip(size, window, strict=True)):
            shift = 0
        return window_attention(q, k, v, window, (shift, shift), bias)
    # Shifted windows are those of a map with masked tokens before its first.
    before = [(side - shift) % side for side in window]
    rows, columns = (
        (length + offset + side - 1) // side
        for length, offset, side in zip(size, before, window, strict=True)
    )
    if shift:
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
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)  # (B, windows, heads, tokens, tokens)
    if bias is not None:
        logits = logits + bias
    logits = logits.masked_fill(~inside[:, None, None], float("-inf"))
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    out = (weights.to(v.dtype) @ v).transpose(2, 3)

    y = torch.arange(size[0], device=q.device)[:, None] + top
    x = torch.arange(size[1], device=q.device) + left
    windows = y // window[0] * columns + x // window[1]
    return out[:, windows, y % window[0] * window[1] + x % window[1]]


class StripeConv(torch.nn.Conv2d):
    """Depthwise 3x3 convolution of a channels-last map within stripes, each zero-padded.

    Args:
        dim: Channels.
        split_size: Tokens that stripes are wide; None for one that is the map.
        axis: 1 for stripes of rows, 2 for stripes of columns.
    """

    def __init__(self, dim: int, split_size: int | None = None, axis: int = 2, **dd):
        super().__init__(dim, dim, 3, padding=1, groups=dim, **dd)
        self.split_size = split_size
        self.axis = axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split, axis = self.split_size, self.axis
        if split is None:
            return self._convolve(x)
        # One line of zeros between stripes, which each of them has for its border.
        length = x.shape[axis]
        place = torch.arange(length + (length - 1) // split, device=x.device)
        stripe, line = place // (split + 1), place % (split + 1)
        source = torch.where(line < split, stripe * split + line, length)
        x = F.pad(x, (0, 0, 0, 0, 0, 1) if axis == 1 else (0, 0, 0, 1))
        x = self._convolve(x.index_select(axis, source))
        lines = torch.arange(length, device=x.device)
        return x.index_select(axis, lines + lines // split)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
