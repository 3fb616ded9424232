"""The definition of bi-level routing attention in plain torch."""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Grid(NamedTuple):
    """Regions over a map: ``rows`` x ``columns`` of them, each ``height`` x ``width`` tokens."""

    rows: int
    columns: int
    height: int
    width: int


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


def to_regions(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Cuts (B, H, W, ...) into regions, (B, P, tokens, ...), zero-padding right and bottom."""
    pad_bottom = grid.rows * grid.height - x.shape[1]
    pad_right = grid.columns * grid.width - x.shape[2]
    if not (is_zero(pad_bottom) and is_zero(pad_right)):
        x = F.pad(x, (0, 0) * (x.ndim - 3) + (0, pad_right, 0, pad_bottom))
    x = x.unflatten(2, (grid.columns, grid.width)).unflatten(1, (grid.rows, grid.height))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_regions(x: torch.Tensor, grid: Grid, height: int, width: int) -> torch.Tensor:
    """Inverts ``to_regions``: (B, P, tokens, ...) to (B, height, width, ...)."""
    x = x.unflatten(2, (grid.height, grid.width)).unflatten(1, (grid.rows, grid.columns))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]


def is_zero(size: int) -> bool:
    """Whether a size is known to be zero; a symbolic size is not, so that no guard is made."""
    return isinstance(size, int) and size == 0


def route_regions(
    q: torch.Tensor,
    k: torch.Tensor,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    pad_mode: str,
) -> torch.Tensor:
    """Routing indices (B, P, topk); see ``visattn.kernels.route_regions``."""
    q_grid, k_grid = _grids(q, k, regions, pad_mode)
    valid = _valid_tokens(q, q_grid)
    return _route(to_regions(q, q_grid), to_regions(k, k_grid), valid, topk, scale)


def bilevel_routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    pad_mode: str,
    routing: torch.Tensor | None,
) -> torch.Tensor:
    """See ``visattn.kernels.bilevel_routing_attention``."""
    height, width = q.shape[1:3]
    q_grid, k_grid = _grids(q, k, regions, pad_mode)
    valid = _valid_tokens(q, q_grid)
    q, k, v = to_regions(q, q_grid), to_regions(k, k_grid), to_regions(v, k_grid)
    if routing is None:
        routing = _route(q, k, valid, topk, scale)

    k, v = _take_regions(k, routing), _take_regions(v, routing)  # (B, P, topk * tokens, heads, dim)
    q, k, v = q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3)
    logits = (q * scale) @ k.transpose(-2, -1)  # (B, P, heads, tokens, topk * tokens)
    if valid is not None:
        attended = valid if pad_mode == "mask" else valid.any(-1, keepdim=True).expand_as(valid)
        attended = attended[routing].flatten(2)[:, :, None, None]
        logits = logits.masked_fill(~attended, float("-inf"))
    attention = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    out = (attention.to(v.dtype) @ v).transpose(2, 3)
    return from_regions(out, q_grid, height, width)


def _grids(
    q: torch.Tensor, k: torch.Tensor, regions: tuple[int, int], pad_mode: str
) -> tuple[Grid, Grid]:
    grid = region_grid(q.shape[1], q.shape[2], regions, pad_mode)
    if q.shape[1:3] == k.shape[1:3]:
        return grid, grid
    for name, x in (("q", q), ("k", k)):
        if x.shape[1] % regions[0] or x.shape[2] % regions[1]:
            raise ValueError(
                f"with pooled keys {regions[0]} x {regions[1]} regions must divide the maps; "
                f"{name} is {tuple(x.shape)}"
            )
    return grid, Grid(*regions, k.shape[1] // regions[0], k.shape[2] // regions[1])


def _valid_tokens(x: torch.Tensor, grid: Grid) -> torch.Tensor | None:
    """Which tokens of each region are real, (P, tokens); None where no token is padding."""
    height, width = x.shape[1:3]
    if is_zero(grid.rows * grid.height - height) and is_zero(grid.columns * grid.width - width):
        return None
    return to_regions(torch.ones(1, height, width, 1, dtype=torch.bool, device=x.device), grid)[
        0, ..., 0
    ]


def _route(
    q: torch.Tensor, k: torch.Tensor, valid: torch.Tensor | None, topk: int, scale: float
) -> torch.Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k = q.detach().flatten(3).to(dtype), k.detach().flatten(3).to(dtype)
    with torch.autocast(q.device.type, enabled=False):
        if valid is None:
            q, k = q.mean(2), k.mean(2)  # (B, P, heads * dim)
        else:
            count = valid.sum(-1).clamp(min=1)[:, None]
            q, k = q.sum(2) / count, k.sum(2) / count
        logits = (q * scale) @ k.transpose(-2, -1)  # (B, P, P)
        if valid is not None:
            logits = logits.masked_fill(~valid.any(-1), float("-inf"))
    regions = logits.shape[-1]
    return logits.topk(min(topk, regions) if isinstance(regions, int) else topk).indices


def _take_regions(x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
    """Copies the routed regions side by side: (B, P, tokens, ...) to (B, P, topk * tokens, ...)."""
    batch, regions = x.shape[:2]
    offset = torch.arange(batch, device=x.device)[:, None, None] * regions
    taken = x.flatten(0, 1).index_select(0, (routing + offset).flatten())
    return taken.unflatten(0, routing.shape).flatten(2, 3)
