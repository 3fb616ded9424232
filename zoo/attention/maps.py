"""What the attention layers of a model look at, as data.

Maps are recomputed for one image by the layers themselves, as they run: fused operators keep no
matrix of attention, and need none here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...backbones._agent import AgentAttention, SpatialReductionAttention
from ...backbones.agent_cswin import CrossShapedAttention
from ...backbones.agent_deit import ClassTokenAgentAttention, ClassTokenAttention
from ...backbones.agent_swin import WindowAttention
from ...backbones.biformer import BiLevelRoutingAttention
from ...backbones.dcal import DualCrossAttentionTransformer
from ...backbones.ela import EfficientLocalAttention
from ...backbones.nat import NeighborhoodAttention
from ...backbones.nat_isotropic import BiasedAttention
from ...kernels.bilevel_routing_attention.reference import Grid, region_grid
from ..errors import UserError

__all__ = [
    "AgentMap",
    "AttentionMap",
    "GateMap",
    "LayerMap",
    "RolloutMap",
    "RoutingMap",
    "attention_layers",
    "attention_maps",
    "last_of_stages",
]

ROLLOUT = "rollout"
"""Name under which the attention rollout of DCAL is listed with its layers."""

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AttentionMap(ABC):
    """What an image's tokens look at in one place of a model.

    Attributes:
        map_size: Height and width of the map in tokens, without padding.
        image_size: Height and width of the image in pixels.
    """

    map_size: Size
    image_size: Size

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

    @abstractmethod
    def panels(self, y: float, x: float) -> dict[str, torch.Tensor]:
        """What there is to draw for the token at a pixel: maps (H, W), at least 0, by title."""


@dataclass(frozen=True, kw_only=True)
class LayerMap(AttentionMap):
    """Attention weights of a layer whose values come from ``qkv`` or ``kv`` and go to ``proj``.

    Attributes:
        layer: The layer.
        args: What the model gave it for this image.
        key_size: Height and width of the map of keys in tokens, without padding.
        prefix_tokens: Tokens before those of the map.
    """

    layer: nn.Module
    args: tuple[Any, ...]
    key_size: Size
    prefix_tokens: int = 0

    def attention(self, y: float, x: float) -> torch.Tensor:
        """Attention of the token at a pixel to all tokens of the map, mean of the heads.

        The layer runs once more. What it gives to its last projection is linear in the values, so
        its gradient with respect to them is the attention, exactly as the layer computes it.

        Returns:
            (H, W). Together with attention to padding and to prefix tokens it sums to 1.
        """
        row, column = self.token_at(y, x)
        layer, seen = self.layer, {}

        def take_values_apart(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            *others, value = output.detach().chunk(output.shape[-1] // layer.proj.in_features, -1)
            seen["value"] = value.requires_grad_()
            return torch.cat((*others, value), -1)

        def keep(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            seen["out"] = args[0]

        with ExitStack() as stack:
            source = layer.qkv if hasattr(layer, "qkv") else layer.kv
            stack.enter_context(_hook(source.register_forward_hook(take_values_apart)))
            stack.enter_context(_hook(layer.proj.register_forward_pre_hook(keep)))
            for module in _local_convolutions(layer):
                stack.enter_context(_hook(module.register_forward_hook(_give_residual)))
            stack.enter_context(torch.enable_grad())
            layer(*self.args)
            out, value = seen["out"][0], seen["value"]
            if out.ndim == 2:  # tokens, not a map
                out = out[self.prefix_tokens :].unflatten(0, self.map_size)
            (weights,) = torch.autograd.grad(out[row, column].sum(), value)
        weights = weights[0].mean(-1)
        if weights.ndim == 1:
            weights = weights[self.prefix_tokens :].unflatten(0, self.key_size)
        return weights[: self.key_size[0], : self.key_size[1]]

    def panels(self, y: float, x: float) -> dict[str, torch.Tensor]:
        return {"attention": self.attention(y, x)}


@contextmanager
def _hook(handle: RemovableHandle) -> Iterator[None]:
    """Removes a hook in the end."""
    try:
        yield
    finally:
        handle.remove()


def _local_convolutions(layer: nn.Module) -> list[nn.Module]:
    """The depthwise convolutions whose result a layer adds to that of attention."""
    modules = [getattr(layer, name) for name in ("dwc", "lepe") if hasattr(layer, name)]
    return [m for module in modules for m in (module if hasattr(module, "__iter__") else [module])]


def _give_residual(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    """What a local convolution adds to, alone."""
    return args[1]


@dataclass(frozen=True, kw_only=True)
class RoutingMap(LayerMap):
    """Where each region of a layer's map looks, for one image.

    Attributes:
        indices: Regions that a region attends to, (P, topk), the most affine first, row-major over
            the grid.
        grid: Rows and columns of regions, and height and width of one in tokens, padding included.
    """

    indices: torch.Tensor
    grid: Grid

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


@dataclass(frozen=True, kw_only=True)
class AgentMap(LayerMap):
    """What agents gather from the keys, and how queries listen to the agents.

    Attributes:
        gathered: Attention of each agent to the keys, mean of the heads, (n, h, w).
        heard: Attention of the queries to each agent, mean of the heads, (n, H, W).
    """

    gathered: torch.Tensor
    heard: torch.Tensor

    def panels(self, y: float, x: float) -> dict[str, torch.Tensor]:
        row, column = self.token_at(y, x)
        agent = int(self.heard[:, row, column].argmax())
        return {
            "attention through agents": self.attention(y, x),
            f"what agent {agent} gathers": self.gathered[agent],
            f"who hears agent {agent}": self.heard[agent],
        }


@dataclass(frozen=True, kw_only=True)
class GateMap(AttentionMap):
    """What a layer multiplies its input by, which is the same for all queries.

    Attributes:
        gate: Mean of the channels, (H, W), from 0 to 1.
    """

    gate: torch.Tensor

    def panels(self, y: float, x: float) -> dict[str, torch.Tensor]:
        return {"gate": self.gate - self.gate.min()}


@dataclass(frozen=True, kw_only=True)
class RolloutMap(AttentionMap):
    """What the class token looks at through all layers, whatever the query.

    Attributes:
        rollout: Attention rollout, (H, W).
        selected: Which tokens global-local cross-attention asks for, (H, W).
    """

    rollout: torch.Tensor
    selected: torch.Tensor

    def panels(self, y: float, x: float) -> dict[str, torch.Tensor]:
        return {
            "class token": self.rollout,
            "selected patches": self.rollout * self.selected,
        }


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The places of a model whose attention can be read, by name.

    Layers of the backbones of visattn, and of timm's Vision Transformers; for DCAL, the model
    itself under the name "rollout".
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        # Global-local cross-attention does not run its layers, but what they are made of.
        if _reader(module, model) is not None and not name.startswith("glca_")
    }
    if isinstance(model, DualCrossAttentionTransformer):
        layers[ROLLOUT] = model
    return layers


def last_of_stages(names: Sequence[str]) -> list[str]:
    """Of layers such as ``stages.0.blocks.1.attn`` the last of each stage.

    Where all layers are in one stage, each is a stage of its own; of many stages, four that are
    about evenly spaced, the last one among them.
    """

    def stage(name: str) -> str:
        parts = name.split(".")
        numbered = [i for i, part in enumerate(parts) if part[-1:].isdigit()]
        return ".".join(parts[: numbered[0] + 1]) if numbered else name

    last = list({stage(name): name for name in names}.values())
    last = last if len(last) > 1 else list(names)
    if len(last) > 5:
        last = [last[round((i + 1) * len(last) / 4) - 1] for i in range(4)]
    return last


def attention_maps(
    model: nn.Module, image: torch.Tensor, layers: Sequence[str] | None = None
) -> dict[str, AttentionMap]:
    """Runs a model on an image and reads what its layers look at.

    Args:
        model: Model with attention that can be read (``attention_layers``); run in eval mode and
            left as it was.
        image: Normalised image, (3, H, W) or (1, 3, H, W).
        layers: Names of layers; by default the last of each stage, and the rollout of DCAL.

    Returns:
        The maps, by layer.

    Raises:
        UserError: If the model has no such layers, or none of a given name.
    """
    known = attention_layers(model)
    if not known:
        raise UserError(
            f"{type(model).__name__} has no layer whose attention can be shown: choose a model of "
            "visattn, or a Vision Transformer of timm"
        )
    if layers is None:
        layers = last_of_stages([name for name in known if name != ROLLOUT])
        layers += [ROLLOUT] if ROLLOUT in known else []
    unknown = [name for name in layers if name not in known]
    if unknown:
        raise UserError(f"no attention layer {unknown[0]!r}: there are {', '.join(known)}")
    image = image[None] if image.ndim == 3 else image
    size = tuple(image.shape[-2:])
    maps: dict[str, AttentionMap] = {}

    def read(name: str, reader: Callable[..., AttentionMap]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            maps[name] = reader(module, args, size)

        return hook

    was_training = model.training
    with ExitStack() as stack, torch.no_grad():
        model.eval()
        stack.callback(model.train, was_training)
        for name in layers:
            if name != ROLLOUT:
                hook = read(name, _reader(known[name], model))
                stack.enter_context(_hook(known[name].register_forward_pre_hook(hook)))
        inputs: list[torch.Tensor] = []
        for block in model.blocks if ROLLOUT in layers else ():
            hook = block.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
            stack.enter_context(_hook(hook))
        model(image)
        if ROLLOUT in layers:
            maps[ROLLOUT] = _read_rollout(model, inputs, size)
    return {name: maps[name] for name in layers}


def _reader(layer: nn.Module, model: nn.Module) -> Callable[..., AttentionMap] | None:
    """What reads a layer's map, given the layer, its arguments and the size of the image."""
    if isinstance(layer, Attention):
        return partial(_read_tokens, model) if isinstance(model, VisionTransformer) else None
    readers = {
        BiLevelRoutingAttention: _read_routing,
        NeighborhoodAttention: _read_layer,
        BiasedAttention: _read_layer,
        WindowAttention: _read_layer,
        CrossShapedAttention: _read_layer,
        AgentAttention: _read_agents,
        ClassTokenAgentAttention: _read_agents,
        SpatialReductionAttention: _read_layer,
        ClassTokenAttention: _read_layer,
        EfficientLocalAttention: _read_gate,
    }
    return readers.get(type(layer))


def _common(layer: nn.Module, args: tuple[Any, ...], image_size: Size) -> dict[str, Any]:
    """Arguments of a ``LayerMap`` for a layer that takes a map, or tokens and the map's size."""
    size = tuple(args[1] if args[0].ndim == 3 else args[0].shape[1:3])
    ratio = getattr(layer, "sr_ratio", 1)
    return {
        "map_size": size,
        "image_size": image_size,
        "layer": layer,
        "args": args,
        "key_size": tuple(side // ratio for side in size),
        "prefix_tokens": args[0].shape[1] - size[0] * size[1] if args[0].ndim == 3 else 0,
    }


def _read_layer(layer: nn.Module, args: tuple[Any, ...], image_size: Size) -> LayerMap:
    return LayerMap(**_common(layer, args, image_size))


def _read_tokens(
    model: VisionTransformer, layer: Attention, args: tuple[Any, ...], image_size: Size
) -> LayerMap:
    size = tuple(model.patch_embed.dynamic_feat_size(image_size))
    prefix = args[0].shape[1] - size[0] * size[1]
    return LayerMap(
        map_size=size,
        image_size=image_size,
        layer=layer,
        args=args,
        key_size=size,
        prefix_tokens=prefix,
    )


def _read_routing(
    layer: BiLevelRoutingAttention, args: tuple[Any, ...], image_size: Size
) -> RoutingMap:
    height, width = args[0].shape[1:3]
    return RoutingMap(
        **_common(layer, args, image_size),
        indices=layer.routing(args[0])[0],
        grid=region_grid(height, width, (layer.n_win,) * 2, layer.op_kwargs["pad_mode"]),
    )


def _read_agents(layer: AgentAttention, args: tuple[Any, ...], image_size: Size) -> AgentMap:
    common = _common(layer, args, image_size)
    gathered, heard = layer.weights(*args)
    prefix = common["prefix_tokens"]
    return AgentMap(
        **common,
        gathered=gathered[0].mean(0)[:, prefix:].unflatten(1, common["key_size"]),
        heard=heard[0].mean(0)[prefix:].T.unflatten(1, common["map_size"]),
    )


def _read_gate(layer: EfficientLocalAttention, args: tuple[Any, ...], image_size: Size) -> GateMap:
    rows, columns = layer.gates(args[0])
    gate = (rows[0, :, :, None] * columns[0, :, None]).mean(0)
    return GateMap(map_size=tuple(args[0].shape[-2:]), image_size=image_size, gate=gate)


def _read_rollout(
    model: DualCrossAttentionTransformer, inputs: list[torch.Tensor], image_size: Size
) -> RolloutMap:
    """The rollout of a model, given the inputs of its blocks."""
    scores = model.rollout_scores(inputs)
    selected = torch.zeros_like(scores)
    selected[0, model.select(scores)[0]] = 1
    size = tuple(model.patch_embed.dynamic_feat_size(image_size))
    return RolloutMap(
        map_size=size,
        image_size=image_size,
        rollout=scores[0, 1:].unflatten(0, size),
        selected=selected[0, 1:].unflatten(0, size),
    )
