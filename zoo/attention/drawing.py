"""Drawings of what attention looks at, on the image."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .maps import AttentionMap, GateMap, RolloutMap, RoutingMap

__all__ = ["describe_layer", "draw_heat", "draw_routing", "plot_attention"]

QUERY_COLOUR = (0, 190, 255)
HEAT_COLOUR = (255, 122, 0)
PANEL = 3.4
"""Width of a panel in inches."""


def draw_heat(
    pixels: np.ndarray,
    heat: torch.Tensor,
    query: tuple[float, float] | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Colours an image where a map is warm, and fades it where it is cold.

    Args:
        pixels: Image, bytes (H, W, 3).
        heat: Map of any size, at least 0; the warmest place is drawn as warm as can be.
        query: y and x of a dot in pixels.
        scale: Enlargement of the drawing.

    Returns:
        Bytes (scale * H, scale * W, 3).
    """
    canvas, faded = _canvases(pixels, scale)
    strength = _strength(heat, canvas.shape[:2])
    canvas = (1 - strength) * faded + strength * (0.45 * canvas + 0.55 * np.array(HEAT_COLOUR))
    if query is not None:
        line = max(1, scale * min(pixels.shape[:2]) // 150)
        _dot(canvas, scale * query[0], scale * query[1], 2.5 * line)
    return canvas.round().clip(0, 255).astype(np.uint8)


def draw_routing(
    pixels: np.ndarray,
    routing: RoutingMap,
    query: tuple[float, float],
    show_attention: bool = True,
    scale: int = 1,
) -> np.ndarray:
    """Draws the regions that a pixel's region looks at, on the image.

    What is not looked at fades; routed regions are framed and, where ``show_attention``, warmer
    where the query's token attends more. The query's region has a frame of its own.

    Args:
        pixels: Image, bytes (H, W, 3), of the size the model saw.
        routing: Where a layer looks.
        query: y and x of the query in pixels.
        show_attention: Whether to colour by attention weights.
        scale: Enlargement of the drawing.

    Returns:
        Bytes (scale * H, scale * W, 3).
    """
    y, x = query
    canvas, faded = _canvases(pixels, scale)
    boxes = [
        tuple(scale * edge for edge in routing.box(region))
        for region in routing.indices[routing.region_at(y, x)]
    ]
    boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
    routed = np.zeros(canvas.shape[:2], bool)
    for top, left, bottom, right in boxes:
        routed[top:bottom, left:right] = True
    if show_attention:
        strength = 0.65 * _strength(routing.attention(y, x), canvas.shape[:2])
        canvas = (1 - strength) * canvas + strength * np.array(HEAT_COLOUR)
    canvas = np.where(routed[..., None], canvas, faded)
    line = max(1, scale * min(pixels.shape[:2]) // 150)
    for box in reversed(boxes):
        _frame(canvas, box, HEAT_COLOUR, line)
    own = tuple(scale * edge for edge in routing.box(routing.region_at(y, x)))
    _frame(canvas, own, QUERY_COLOUR, 2 * line)
    _dot(canvas, scale * y, scale * x, 2.5 * line)
    return canvas.round().clip(0, 255).astype(np.uint8)


def _canvases(pixels: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """An image enlarged, and the same pale and grey."""
    height, width = pixels.shape[:2]
    image = torch.from_numpy(np.array(pixels, dtype=np.float32)).permute(2, 0, 1)[None]
    canvas = _enlarge(image, (scale * height, scale * width), "bicubic")
    grey = canvas.mean(-1, keepdims=True)
    return canvas, 0.35 * (0.3 * canvas + 0.7 * grey) + 0.65 * 236


def _strength(heat: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) relative to its largest value, (H, W, 1); small values are lifted."""
    heat = heat.detach().cpu().float()
    relative = heat / heat.max().clamp(min=1e-12)
    return _enlarge(relative[None, None], size, "nearest-exact").clip(0, 1) ** 0.7


def _enlarge(image: torch.Tensor, size: tuple[int, int], mode: str) -> np.ndarray:
    """(1, C, h, w) to an array (H, W, C)."""
    return F.interpolate(image, size, mode=mode)[0].permute(1, 2, 0).numpy()


def _frame(
    canvas: np.ndarray, box: tuple[int, ...], colour: tuple[int, int, int], line: int
) -> None:
    top, left, bottom, right = box
    for window in (
        np.s_[top : top + line, left:right],
        np.s_[max(bottom - line, top) : bottom, left:right],
        np.s_[top:bottom, left : left + line],
        np.s_[top:bottom, max(right - line, left) : right],
    ):
        canvas[window] = colour


def _dot(canvas: np.ndarray, y: float, x: float, radius: float) -> None:
    rows, columns = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    distance = np.hypot(rows - y, columns - x)
    canvas[distance <= 1.6 * radius] = 255
    canvas[distance <= radius] = QUERY_COLOUR


def plot_attention(
    pixels: np.ndarray,
    maps: dict[str, AttentionMap],
    query: tuple[float, float],
    title: str | None = None,
) -> Any:
    """Draws an image and, beside it, what each layer looks at from a query.

    Args:
        pixels: Image, bytes (H, W, 3), of the size the model saw.
        maps: Maps of layers, from ``attention_maps``.
        query: y and x of the query in pixels.
        title: Line above the panels.

    Returns:
        A ``matplotlib`` figure.
    """
    from matplotlib.figure import Figure

    height, width = pixels.shape[:2]
    scale = max(1, round(560 / min(height, width)))
    panels = [("Image and query", _with_query(pixels, query, scale))]
    for name, attention in maps.items():
        panels += _draw(pixels, describe_layer(name), attention, query, scale)
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(
        (PANEL * columns, (PANEL * height / width + 0.55) * rows + 0.45), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    for axis, (text, drawing) in zip(axes, panels, strict=False):
        axis.imshow(drawing)
        axis.set_title(text, fontsize=11, loc="left")
    if title:
        figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    return figure


def _with_query(pixels: np.ndarray, query: tuple[float, float], scale: int) -> np.ndarray:
    canvas, _ = _canvases(pixels, scale)
    line = max(1, scale * min(pixels.shape[:2]) // 150)
    _dot(canvas, scale * query[0], scale * query[1], 2.5 * line)
    return canvas.round().clip(0, 255).astype(np.uint8)


def _draw(
    pixels: np.ndarray,
    name: str,
    attention: AttentionMap,
    query: tuple[float, float],
    scale: int,
) -> list[tuple[str, np.ndarray]]:
    """Titles and drawings of one layer."""
    if isinstance(attention, RoutingMap):
        regions = attention.grid.rows * attention.grid.columns
        title = f"{name}: {attention.indices.shape[-1]} of {regions} regions"
        return [(title, draw_routing(pixels, attention, query, scale=scale))]
    dot = None if isinstance(attention, GateMap | RolloutMap) else query
    return [
        (f"{name}: {text}", draw_heat(pixels, heat, dot, scale))
        for text, heat in attention.panels(*query).items()
    ]


def describe_layer(name: str) -> str:
    """``stages.0.blocks.1.attn`` as "Stage 1, block 2"; other names as they are."""
    parts = name.split(".")
    if len(parts) >= 4 and parts[0] == "stages" and parts[2] == "blocks":
        return f"Stage {int(parts[1]) + 1}, block {int(parts[3]) + 1}"
    if len(parts) == 3 and parts[0] == "blocks" and parts[2] == "attn":
        return f"Block {int(parts[1]) + 1}"
    return name
