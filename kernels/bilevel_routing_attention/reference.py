"""The definition of bi-level routing attention in plain torch.

Regions are lists of token indices, never views, so that sizes may be symbolic in an export.
"""

from typing import NamedTuple

import torch


class Grid(NamedTuple):
    """Regions over a map: ``rows`` x ``columns`` of them, each ``height`` x ``width`` tokens."""

    rows: int
    columns: int
    height: int
    width: int

    def covers(self, height: int, width: int) -> bool:
        """Whether no region is known to reach over the border of a map of this size."""
        sides = (self.rows * self.height, height, self.columns * self.width, width)
        return all(isinstance(side, int) for side in sides) and sides[::2] == sides[1::2]


def region_grid(height: int, width: int, regions: tuple[int, int], pad_mode: str) -> Grid:
    """Lays a grid of regions over a map of ``height`` x ``width`` tokens, padding included."""

    def side(size: int, count: int) -> tuple[int, int]:
        if pad_mode == "mask":
            return count, (size + count - 1) // count
        length = torch.sym_max(size // count, 1)
        return torch.sym_max((size + length - 1) // length, count), length

    rows, region_height = side(height, regions[0])
    columns, region_width = side(width, regions[1])
    return Grid(rows, columns, region_height, region_width)


def route_regions(
    q: torch.Tensor,
    k: torch.Tensor,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    pad_mode: str,
) -> torch.Tensor:
    """Routing indices (B, P, topk); see ``visattn.kernels.route_regions``."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    grids = lay_grids(q, k, regions, pad_mode)
    means = [
        _region_means(x.detach().flatten(3).to(dtype), grid)
        for x, grid in zip((q, k), grids, strict=True)
    ]
    return choose_regions(*means, populated_regions(k, grids[1]), topk, scale)


def choose_regions(
    q: torch.Tensor, k: torch.Tensor, populated: torch.Tensor | None, topk: int, scale: float
) -> torch.Tensor:
    """Routing indices (B, P, topk) by mean queries and keys (B, P, C)."""
    with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):
        logits = (q * scale) @ k.transpose(-2, -1)  # (B, P, P)
    if populated is not None:
        logits = logits.masked_fill(~populated, float("-inf"))
    count = logits.shape[-1]
    return logits.topk(min(topk, count) if isinstance(count, int) else topk).indices


def bilevel_routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    routing: torch.Tensor,
    regions: tuple[int, int],
    scale: float,
    pad_mode: str,
) -> torch.Tensor:
    """See ``visattn.kernels.bilevel_routing_attention``."""
    height, width = q.shape[1:3]
    q_grid, k_grid = lay_grids(q, k, regions, pad_mode)
    q = _take(q, _tokens(_all_regions(q_grid, q.device), q_grid)).transpose(2, 3)
    tokens = _tokens(routing, k_grid)
    k_size = k.shape[1:3]
    k, v = _take(k, tokens).transpose(2, 3), _take(v, tokens).transpose(2, 3)

    logits = (q * scale) @ k.transpose(-2, -1)  # (B, P, heads, tokens, topk * tokens)
    if not k_grid.covers(*k_size):
        attended = tokens.inside(*k_size)[:, :, None, None]
        if pad_mode == "zero":
            logits = logits.masked_fill(~attended, 0.0)
            v = v.masked_fill(~attended.transpose(-2, -1), 0.0)
            attended = tokens.in_populated_region(*k_size)[:, :, None, None]
        logits = logits.masked_fill(~attended, float("-inf"))
    attention = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    out = (attention.to(v.dtype) @ v).transpose(2, 3)  # (B, P, tokens, heads, dim_v)

    y = torch.arange(height, device=q.device)[:, None]
    x = torch.arange(width, device=q.device)
    region = y // q_grid.height * q_grid.columns + x // q_grid.width
    return out[:, region, y % q_grid.height * q_grid.width + x % q_grid.width]


class Tokens(NamedTuple):
    """Positions of tokens on a map, padding included; ``top`` and ``left`` are their region's."""

    y: torch.Tensor
    x: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor

    def inside(self, height: int, width: int) -> torch.Tensor:
        """Which of them are not padding on a map of this size."""
        return (self.y < height) & (self.x < width)

    def in_populated_region(self, height: int, width: int) -> torch.Tensor:
        """Which of them are in a region that has at least one token that is not padding."""
        return (self.top < height) & (self.left < width)


def _tokens(regions: torch.Tensor, grid: Grid) -> Tokens:
    """Lists the tokens of regions side by side: (..., n) indices to (..., n * tokens)."""
    area = grid.height * grid.width
    # An export would specialise on regions of one token: a second one, outside the map, avoids it.
    length = area if isinstance(area, int) else torch.sym_max(area, 2)
    step = torch.arange(regions.shape[-1] * length, device=regions.device)
    region, token = regions[..., step // length], step % length
    top, left = region // grid.columns * grid.height, region % grid.columns * grid.width
    if not isinstance(area, int):
        top = top.masked_fill(token >= area, torch.iinfo(torch.int32).max)
    return Tokens(top + token // grid.width, left + token % grid.width, top, left)


def _all_regions(grid: Grid, device: torch.device) -> torch.Tensor:
    return torch.arange(grid.rows * grid.columns, device=device)[None, :, None]  # (1, P, 1)


def _take(x: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Takes tokens (B or 1, P, n) from a map (B, H, W, ...): (B, P, n, ...)."""
    batch, height, width = x.shape[:3]
    index = tokens.y.clamp(max=height - 1) * width + tokens.x.clamp(max=width - 1)
    index = index + torch.arange(batch, device=x.device)[:, None, None] * (height * width)
    return x.flatten(0, 2).index_select(0, index.flatten()).unflatten(0, index.shape)


def _region_means(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Means over each region's own tokens, (B, P, C); 0 where it has none."""
    size = x.shape[1:3]
    tokens = _tokens(_all_regions(grid, x.device), grid)
    x = _take(x, tokens)
    if grid.covers(*size):
        return x.mean(2)
    real = tokens.inside(*size)[0]  # (P, tokens)
    return x.masked_fill(~real[..., None], 0.0).sum(2) / real.sum(-1)[:, None].clamp(min=1)


def populated_regions(k: torch.Tensor, grid: Grid) -> torch.Tensor | None:
    """Which regions (P,) have any token of a map; None where all are known to."""
    height, width = k.shape[1:3]
    if grid.covers(height, width):
        return None
    region = torch.arange(grid.rows * grid.columns, device=k.device)
    top, left = region // grid.columns * grid.height, region % grid.columns * grid.width
    return (top < height) & (left < width)


def lay_grids(
    q: torch.Tensor, k: torch.Tensor, regions: tuple[int, int], pad_mode: str
) -> tuple[Grid, Grid]:
    """Grids of regions over the maps of queries and keys."""
    grid = region_grid(q.shape[1], q.shape[2], regions, pad_mode)
    if q.shape[1:3] == k.shape[1:3]:
        return grid, grid
    return grid, Grid(*regions, k.shape[1] // regions[0], k.shape[2] // regions[1])


def invert_routing(routing: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists, for each of ``count`` key regions of each sample, the query regions that chose it.

    Args:
        routing: Region indices, (B, P, topk).
        count: Key regions of a sample.

    Returns:
        Offsets (B * count + 1) into the list of all users, and this list (B * P * topk): query
        regions numbered from 0 to B * P, ascending for each key region.
    """
    batch, regions, topk = routing.shape
    chosen = routing + count * torch.arange(batch, device=routing.device)[:, None, None]
    chosen, order = chosen.flatten().sort(stable=True)
    borders = torch.arange(batch * count + 1, device=routing.device)
    return torch.searchsorted(chosen, borders), order // topk
