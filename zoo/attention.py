"""What attention looks at: routed regions and attention weights of a model, as data and images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..backbones.biformer import BiLevelRoutingAttention
from ..kernels import bilevel_routing_attention
from ..kernels.bilevel_routing_attention.reference import Grid, region_grid
from .errors import UserError

__all__ = ["RoutingMap", "draw_routing", "plot_routing", "routed_regions", "routing_layers"]

QUERY_COLOUR = (0, 190, 255)
ROUTED_COLOUR = (255, 122, 0)


@dataclass(frozen=True)
class RoutingMap:
    """Where each region of a layer's map looks, for one image.

    Attributes:
        indices: Regions that a region attends to, (P, topk), the most affine first, row-major over
            the grid.
        grid: Rows and columns of regions, and height and width of one in tokens, padding included.
        map_size: Height and width of the layer's map in tokens, without padding.
        image_size: Height and width of the image in pixels.
        query: Queries, (1, H, W, heads, dim), padded as the layer does.
        key: Keys, as ``query``.
        op_kwargs: Further arguments of ``bilevel_routing_attention``.
    """

    indices: torch.Tensor
    grid: Grid
    map_size: tuple[int, int]
    image_size: tuple[int, int]
    query: torch.Tensor
    key: torch.Tensor
    op_kwargs: dict[str, Any]

    def token_at(self, y: float, x: float) -> tuple[int, int]:
        """Row and column of the token at a pixel.

        Raises:
            UserError: If the pixel is outside the image.
        """
        height, width = self.image_size
        if not (0 <= y < height and 0 <= x < width):
            raise UserError(
                f"the query (x={x:g}, y={y:g}) is outside the image of {width} x {height} pixels: "
                "choose one inside"
            )
        return int(y * self.map_size[0] / height), int(x * self.map_size[1] / width)

    def region_at(self, y: float, x: float) -> int:
        """Index of the region at a pixel."""
        row, column = self.token_at(y, x)
        return row // self.grid.height * self.grid.columns + column // self.grid.width

    def box(self, region: int) -> tuple[int, int, int, int]:
        """Top, left, bottom and right of a region in pixels, cropped to the image."""
        row, column = divmod(int(region), self.grid.columns)
        edges = []
        for first, count, tokens, pixels in (
            (row, self.grid.height, self.map_size[0], self.image_size[0]),
            (column, self.grid.width, self.map_size[1], self.image_size[1]),
        ):
            span = (min(i * count, tokens) for i in (first, first + 1))
            edges.append([round(edge * pixels / tokens) for edge in span])
        (top, bottom), (left, right) = edges
        return top, left, bottom, right

    def attention(self, y: float, x: float) -> torch.Tensor:
        """Attention of the token at a pixel to all tokens of the map, mean of the heads.

        The output is linear in the values, so its gradient with respect to them is the attention,
        exactly as the layer computes it.

        Returns:
            (H, W) without padding, 0 outside the routed regions.
        """
        row, column = self.token_at(y, x)
        with torch.enable_grad():
            value = torch.zeros_like(self.key[..., :1]).requires_grad_()
            out = bilevel_routing_attention(
                self.query, self.key, value, routing=self.indices[None], **self.op_kwargs
            )
            (weights,) = torch.autograd.grad(out[0, row, column].mean(), value)
        return weights[0, : self.map_size[0], : self.map_size[1], :, 0].sum(-1)


def routing_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model that route, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BiLevelRoutingAttention)
    }


def last_of_stages(names: Sequence[str]) -> list[str]:
    """Of layers such as ``stages.0.blocks.1.attn`` the last of each stage."""
    return list({name.partition(".blocks.")[0]: name for name in names}.values())


def routed_regions(
    model: nn.Module, image: torch.Tensor, layers: Sequence[str] | None = None
) -> dict[str, RoutingMap]:
    """Runs a model on an image and reads where its layers route.

    Args:
        model: Model with bi-level routing attention; run in eval mode and left as it was.
        image: Normalised image, (3, H, W) or (1, 3, H, W).
        layers: Names of layers; by default the last of each stage.

    Returns:
        The maps, by layer.

    Raises:
        UserError: If the model has no such layers, or none of a given name.
    """
    routing = routing_layers(model)
    if not routing:
        raise UserError(
            f"{type(model).__name__} has no layer with bi-level routing attention to show: "
            "choose a BiFormer"
        )
    layers = last_of_stages(list(routing)) if layers is None else layers
    unknown = [name for name in layers if name not in routing]
    if unknown:
        raise UserError(f"no routing layer {unknown[0]!r}: there are {', '.join(routing)}")
    image = image[None] if image.ndim == 3 else image
    maps: dict[str, RoutingMap] = {}

    def capture(name: str):
        def hook(module: BiLevelRoutingAttention, args: tuple[torch.Tensor]) -> None:
            maps[name] = _read_routing(module, args[0], tuple(image.shape[-2:]))

        return hook

    handles = [routing[name].register_forward_pre_hook(capture(name)) for name in layers]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: maps[name] for name in layers}


def _read_routing(
    layer: BiLevelRoutingAttention, x: torch.Tensor, image_size: tuple[int, int]
) -> RoutingMap:
    """The routing of a layer's input (1, H, W, C)."""
    height, width = x.shape[1:3]
    query, key, _ = layer.project(x).unbind(3)
    op_kwargs = layer.op_kwargs
    regions = (layer.n_win, layer.n_win)
    return RoutingMap(
        indices=layer.routing(x)[0],
        grid=region_grid(height, width, regions, op_kwargs["pad_mode"]),
        map_size=(height, width),
        image_size=image_size,
        query=query,
        key=key,
        op_kwargs=op_kwargs,
    )


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
    height, width = pixels.shape[:2]
    tensor = torch.from_numpy(np.array(pixels, dtype=np.float32)).permute(2, 0, 1)[None]
    canvas = _enlarge(tensor, (scale * height, scale * width))
    grey = canvas.mean(-1, keepdims=True)
    faded = 0.35 * (0.3 * canvas + 0.7 * grey) + 0.65 * 236
    boxes = [
        tuple(scale * edge for edge in routing.box(region))
        for region in routing.indices[routing.region_at(y, x)]
    ]
    boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
    routed = np.zeros(canvas.shape[:2], bool)
    for top, left, bottom, right in boxes:
        routed[top:bottom, left:right] = True
    if show_attention:
        weights = routing.attention(y, x)
        weights = weights / weights.max().clamp(min=1e-12)
        heat = _enlarge(weights[None, None].cpu().float(), canvas.shape[:2], "nearest-exact")
        strength = 0.65 * heat.clip(0, 1) ** 0.7
        canvas = (1 - strength) * canvas + strength * np.array(ROUTED_COLOUR)
    canvas = np.where(routed[..., None], canvas, faded)
    line = max(1, scale * min(height, width) // 150)
    for box in reversed(boxes):
        _frame(canvas, box, ROUTED_COLOUR, line)
    own = tuple(scale * edge for edge in routing.box(routing.region_at(y, x)))
    _frame(canvas, own, QUERY_COLOUR, 2 * line)
    _dot(canvas, scale * y, scale * x, 2.5 * line)
    return canvas.round().clip(0, 255).astype(np.uint8)


def _enlarge(image: torch.Tensor, size: tuple[int, int], mode: str = "bicubic") -> np.ndarray:
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


def plot_routing(
    pixels: np.ndarray,
    maps: dict[str, RoutingMap],
    query: tuple[float, float],
    title: str | None = None,
) -> Any:
    """Draws an image and, beside it, where each layer looks from a query.

    Args:
        pixels: Image, bytes (H, W, 3), of the size the model saw.
        maps: Maps of layers, from ``routed_regions``.
        query: y and x of the query in pixels.
        title: Line above the panels.

    Returns:
        A ``matplotlib`` figure.
    """
    from matplotlib.figure import Figure

    columns = min(len(maps) + 1, 4)
    rows = -(-(len(maps) + 1) // columns)
    height, width = pixels.shape[:2]
    panel = 3.4
    figure = Figure(
        (panel * columns, (panel * height / width + 0.55) * rows + 0.45), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    scale = max(1, round(560 / min(height, width)))
    axes[0].imshow(pixels, interpolation="bicubic", extent=(0, width, height, 0))
    axes[0].plot(
        query[1],
        query[0],
        "o",
        color=tuple(c / 255 for c in QUERY_COLOUR),
        markersize=9,
        markeredgecolor="white",
        markeredgewidth=1.8,
    )
    axes[0].set_title("Image and query", fontsize=11, loc="left")
    for axis, (name, routing) in zip(axes[1:], maps.items(), strict=False):
        axis.imshow(draw_routing(pixels, routing, query, scale=scale))
        regions = routing.grid.rows * routing.grid.columns
        axis.set_title(
            f"{describe_layer(name)}: {routing.indices.shape[-1]} of {regions} regions",
            fontsize=11,
            loc="left",
        )
    if title:
        figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    return figure


def describe_layer(name: str) -> str:
    """``stages.0.blocks.1.attn`` as "Stage 1, block 2"; other names as they are."""
    parts = name.split(".")
    if len(parts) >= 4 and parts[0] == "stages" and parts[2] == "blocks":
        return f"Stage {int(parts[1]) + 1}, block {int(parts[3]) + 1}"
    return name
