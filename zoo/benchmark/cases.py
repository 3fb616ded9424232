"""The shapes at which the zoo's models call the kernels, op by op."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch

from ...kernels import (
    AgentBias,
    agent_attention,
    bilevel_routing_attention,
    depthwise_conv,
    efficient_local_attention,
    multi_query_pool,
    neighborhood_attention,
    roi_align,
    roi_unpool,
    unpack,
    window_attention,
)
from ..errors import UserError
from . import peers
from .peers import Peer


class Products(NamedTuple):
    """The least that an op can cost: ``pairs`` of two batched products, (m, k) by (k, n) by (n, k).

    With its gradients it costs ``both`` times as much: three times where all factors have one, for
    each product has two more then.
    """

    groups: int
    m: int
    n: int
    k: int
    pairs: int = 1
    both: int = 3


class Copy(NamedTuple):
    """The least that an op can cost: a copy of the elements that it must read and write.

    Attributes:
        forward: Elements read and written by the forward pass.
        both: Elements read and written by the forward and backward pass.
    """

    forward: int
    both: int


@dataclass(frozen=True)
class Case(ABC):
    """An op at a shape.

    Attributes:
        name: Model and where in it.
        share: Number that batches are divided by, where images are large or have many regions.
    """

    op: ClassVar[str]
    implementations: ClassVar[tuple[str, ...]] = ("cpu", "triton", "reference")
    peers: ClassVar[Mapping[str, Peer]]
    fixed: ClassVar[tuple[str, ...]] = ()
    """Names of inputs that models want no gradients of."""

    name: str
    share: int = field(default=1, kw_only=True)

    def images(self, batch: int) -> int:
        """Images of this case in what is a batch for all others."""
        return max(batch // self.share, 1)

    @abstractmethod
    def inputs(self, batch: int, **factory: Any) -> dict[str, torch.Tensor]:
        """Random inputs by name, as the model would give them; ``factory``: device and dtype."""

    @abstractmethod
    def run(self, impl: str | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """The op."""

    @abstractmethod
    def floor(self, batch: int) -> Products | Copy:
        """The least that the op can cost."""


@dataclass(frozen=True)
class WindowAttention(Case):
    op = "window_attention"
    peers = {
        "sdpa": peers.window_sdpa,
        "sdpa compiled": peers.compiled(peers.window_sdpa),
        "eager": peers.window_eager,
        "flex": peers.window_flex,
        "flex compiled": peers.compiled(peers.window_flex),
    }

    side: int
    heads: int
    shift: int = 0
    window: int = 7
    dim: int = 32

    def inputs(self, batch, **factory):
        area = self.window**2
        return {
            "qkv": torch.randn(batch, self.side, self.side, 3, self.heads, self.dim, **factory),
            "bias": torch.randn(self.heads, area, area, **factory),
        }

    def run(self, impl=None, *, qkv, bias):
        q, k, v = unpack(qkv, 3)
        return window_attention(q, k, v, self.window, self.shift, bias, impl=impl)

    def floor(self, batch):
        groups = batch * self.heads * (self.side // self.window) ** 2
        return Products(groups, self.window**2, self.window**2, self.dim)


@dataclass(frozen=True)
class NeighborhoodAttention(Case):
    op = "neighborhood_attention"
    implementations = ("cpu", "triton", "natten", "reference")
    peers = {
        "natten alone": peers.neighborhood_natten,
        "flex": peers.neighborhood_flex,
        "flex compiled": peers.neighborhood_flex_compiled,
        "sdpa masked": peers.neighborhood_sdpa,
        "sdpa tiles": peers.neighborhood_tiles,
    }

    side: int
    heads: int
    dilation: int = 1
    kernel: int = 7
    bias: bool = True
    dim: int = 32

    def inputs(self, batch, **factory):
        shape = batch, self.side, self.side, 3, self.heads, self.dim
        inputs = {"qkv": torch.randn(shape, **factory)}
        if self.bias:
            table = 2 * self.kernel - 1
            inputs["rpb"] = torch.randn(self.heads, table, table, **factory)
        return inputs

    def run(self, impl=None, *, qkv, rpb=None):
        q, k, v = unpack(qkv, 3)
        return neighborhood_attention(q, k, v, self.kernel, self.dilation, rpb=rpb, impl=impl)

    def floor(self, batch):
        window = self.kernel**2
        return Products(batch * self.heads * self.side**2 // window, window, window, self.dim)


@dataclass(frozen=True)
class BilevelRoutingAttention(Case):
    op = "bilevel_routing_attention"
    peers = {
        "gather": peers.bilevel_gather,
        "sdpa gathered": peers.bilevel_sdpa,
        "flex": peers.bilevel_flex,
        "flex compiled": peers.bilevel_flex_compiled,
    }

    side: int
    heads: int
    topk: int
    regions: int = 7
    dim: int = 32

    @property
    def scale(self) -> float:
        return (self.heads * self.dim) ** -0.5

    def inputs(self, batch, **factory):
        shape = batch, self.side, self.side, 3, self.heads, self.dim
        return {"qkv": torch.randn(shape, **factory)}

    def run(self, impl=None, *, qkv):
        q, k, v = unpack(qkv, 3)
        return bilevel_routing_attention(q, k, v, self.regions, self.topk, impl=impl)

    def floor(self, batch):
        area = (self.side // self.regions) ** 2
        groups = batch * self.heads * self.regions**2
        return Products(groups, area, self.topk * area, self.dim)


@dataclass(frozen=True)
class AgentAttention(Case):
    op = "agent_attention"
    peers = {"sdpa": peers.agent_sdpa, "eager": peers.agent_eager}

    side: int
    heads: int
    agents: int
    dim: int = 32
    prefix: int = 0

    def inputs(self, batch, **factory):
        tokens = self.prefix + self.side**2
        inputs = {
            "qkv": torch.randn(batch, tokens, 3, self.heads, self.dim, **factory),
            "agents": torch.randn(batch, self.heads, self.agents, self.dim, **factory),
        }
        parts = {"rows": (self.side,), "columns": (self.side,), "block": (7, 7)}
        if self.prefix:
            parts["prefix"] = (self.prefix,)
        for name in ("key", "query"):
            for part, shape in parts.items():
                shape = self.heads, self.agents, *shape
                inputs[f"{name}_{part}"] = torch.randn(shape, **factory)
        return inputs

    def run(self, impl=None, *, qkv, agents, **parts):
        q, k, v = (x.transpose(1, 2) for x in unpack(qkv, 2))
        biases = (
            AgentBias(*(parts.get(f"{name}_{part}") for part in AgentBias._fields))
            for name in ("key", "query")
        )
        key_bias, query_bias = biases
        return agent_attention(q, k, v, agents, key_bias=key_bias, query_bias=query_bias, impl=impl)

    def floor(self, batch):
        tokens = self.prefix + self.side**2
        return Products(batch * self.heads, tokens, self.agents, self.dim, pairs=2)


@dataclass(frozen=True)
class DepthwiseConv(Case):
    op = "depthwise_conv"
    implementations = ("cpu", "reference")
    peers = {"contiguous": peers.conv_contiguous}

    side: int
    channels: int
    kernel: int = 3

    def inputs(self, batch, **factory):
        area = batch, self.side, self.side
        return {
            "qkv": torch.randn(*area, 3, self.channels, **factory),
            "weight": torch.randn(self.channels, 1, self.kernel, self.kernel, **factory),
            "bias": torch.randn(self.channels, **factory),
            "residual": torch.randn(*area, self.channels, **factory),
        }

    def run(self, impl=None, *, qkv, weight, bias, residual):
        return depthwise_conv(qkv[:, :, :, 2], weight, bias, residual, impl=impl)

    def floor(self, batch):
        # Values, what is added and the output; then values, the output's gradient and theirs.
        elements = batch * self.channels * self.side**2
        return Copy(forward=3 * elements, both=6 * elements)


@dataclass(frozen=True)
class EfficientLocalAttention(Case):
    op = "efficient_local_attention"
    peers = {"eager": peers.ela_eager, "eager compiled": peers.compiled(peers.ela_eager)}

    side: int
    channels: int
    kernel: int = 7
    width: int = 1
    norm_groups: int = 16

    def inputs(self, batch, **factory):
        channels = self.channels
        return {
            "x": torch.randn(batch, channels, self.side, self.side, **factory),
            "conv": torch.randn(channels, self.width, self.kernel, **factory),
            "weight": torch.randn(channels, **factory),
            "bias": torch.randn(channels, **factory),
        }

    def run(self, impl=None, *, x, conv, weight, bias):
        return efficient_local_attention(x, conv, weight, bias, self.norm_groups, impl=impl)

    def floor(self, batch):
        # x and the output; then x, the output's gradient and that of x.
        elements = batch * self.channels * self.side**2
        return Copy(forward=2 * elements, both=5 * elements)


@dataclass(frozen=True)
class MultiQueryPool(Case):
    op = "multi_query_pool"
    peers = {
        "textbook": peers.pool_textbook,
        "textbook compiled": peers.compiled(peers.pool_textbook),
        "sdpa": peers.pool_sdpa,
        "pooled first": peers.pool_first,
        "pooled first compiled": peers.compiled(peers.pool_first),
    }

    tokens: int
    dim: int
    queries: int
    frozen: bool = True

    @property
    def fixed(self):
        return ("x",) if self.frozen else ()

    def inputs(self, batch, **factory):
        return {
            "x": torch.randn(batch, self.tokens, self.dim, **factory),
            "queries": torch.randn(self.queries, self.dim, **factory),
            "value": torch.randn(self.dim, self.dim, **factory) * self.dim**-0.5,
        }

    def run(self, impl=None, *, x, queries, value):
        return multi_query_pool(x, queries, value, impl=impl)

    def floor(self, batch):
        both = 2 if self.frozen else 3
        return Products(batch, self.queries, self.tokens, self.dim, both=both)


@dataclass(frozen=True)
class RoIAlign(Case):
    op = "roi_align"
    fixed = ("boxes",)
    peers = {"torchvision": peers.roi_align_torchvision}

    side: int
    channels: int
    regions: int
    bins: int
    extent: tuple[int, int]
    spatial_scale: float = 1 / 8
    sampling_ratio: int = 0
    share: int = field(default=4, kw_only=True)

    def inputs(self, batch, **factory):
        x = torch.randn(batch, self.channels, self.side, self.side, **factory)
        pixels = self.side / self.spatial_scale
        boxes = random_boxes(batch * self.regions, pixels, self.extent, x.device)
        image = torch.arange(batch, device=x.device).repeat_interleave(self.regions)
        return {"x": x, "boxes": torch.cat([image[:, None], boxes], 1)}

    def run(self, impl=None, *, x, boxes):
        sampling = self.bins, self.spatial_scale, self.sampling_ratio
        return roi_align(x, boxes, *sampling, impl=impl)

    def floor(self, batch):
        elements = batch * self.channels * (self.side**2 + self.regions * self.bins**2)
        return Copy(forward=elements, both=2 * elements)


@dataclass(frozen=True)
class RoIUnpool(Case):
    op = "roi_unpool"
    fixed = ("boxes",)
    peers = {"products": peers.roi_unpool_products, "grid_sample": peers.roi_unpool_grid}

    side: int
    channels: int
    bins: int
    regions: int = 30
    share: int = field(default=4, kw_only=True)

    @property
    def spatial_scale(self) -> float:
        return self.side / 512

    def inputs(self, batch, **factory):
        count = batch * self.regions
        rois = torch.randn(count, self.channels, self.bins, self.bins, **factory)
        return {"rois": rois, "boxes": random_boxes(count, 512, (64, 320), rois.device)}

    def run(self, impl=None, *, rois, boxes):
        return roi_unpool(rois, boxes, self.side, self.spatial_scale, impl=impl)

    def floor(self, batch):
        elements = batch * self.regions * self.channels * (self.bins**2 + self.side**2)
        return Copy(forward=elements, both=2 * elements)


def random_boxes(
    count: int, side: float, extent: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """Corners (count, 4) of boxes within a square image, with sides within a range."""
    low, high = extent
    size = low + (high - low) * torch.rand(count, 2, device=device)
    start = torch.rand(count, 2, device=device) * (side - size)
    return torch.cat([start, start + size], 1)


CASES: tuple[Case, ...] = (
    WindowAttention("swin_tiny stage 1", 56, 3),
    WindowAttention("swin_tiny stage 1, shifted", 56, 3, 3),
    WindowAttention("swin_tiny stage 2", 28, 6),
    WindowAttention("swin_tiny stage 2, shifted", 28, 6, 3),
    WindowAttention("swin_tiny stage 3", 14, 12),
    WindowAttention("swin_tiny stage 3, shifted", 14, 12, 3),
    WindowAttention("swin_tiny stage 4", 7, 24),
    WindowAttention("agent_swin_small_288 stage 3, shifted", 18, 12, 4, window=9),
    WindowAttention("agent_swin_base_384 stage 3, shifted", 24, 16, 6, window=12),
    NeighborhoodAttention("nat_mini stage 1, no bias", 56, 2, bias=False),
    NeighborhoodAttention("nat_mini stage 1", 56, 2),
    NeighborhoodAttention("nat_mini stage 2", 28, 4),
    NeighborhoodAttention("nat_mini stage 3", 14, 8),
    NeighborhoodAttention("nat_mini stage 4", 7, 16),
    NeighborhoodAttention("dinat_mini stage 1, dilated", 56, 2, 8),
    NeighborhoodAttention("dinat_mini stage 2, dilated", 28, 4, 4),
    NeighborhoodAttention("dinat_mini stage 3, dilated", 14, 8, 2),
    NeighborhoodAttention("nat_isotropic_small", 14, 12),
    NeighborhoodAttention("dinat_large_384_11x11 stage 3", 24, 24, kernel=11, share=4),
    NeighborhoodAttention("dinat_mini at 512, stage 1, dilated", 128, 2, 16, share=4),
    BilevelRoutingAttention("biformer_tiny stage 1", 56, 2, 1),
    BilevelRoutingAttention("biformer_tiny stage 2", 28, 4, 4),
    BilevelRoutingAttention("biformer_tiny stage 3", 14, 8, 16),
    BilevelRoutingAttention("biformer_base stage 1", 56, 3, 1),
    BilevelRoutingAttention("biformer_tiny at 512, stage 1", 128, 2, 1, regions=8),
    BilevelRoutingAttention("biformer_tiny at 512, stage 2", 64, 4, 4, regions=8),
    BilevelRoutingAttention("biformer_tiny at 512, stage 3", 32, 8, 16, regions=8),
    DepthwiseConv("agent_swin_tiny stage 1", 56, 96),
    DepthwiseConv("agent_swin_tiny stage 2", 28, 192),
    DepthwiseConv("agent_swin_tiny stage 3", 14, 384),
    DepthwiseConv("biformer_tiny stage 1", 56, 64, 5),
    DepthwiseConv("biformer_tiny stage 2", 28, 128, 5),
    DepthwiseConv("biformer_tiny stage 3", 14, 256, 5),
    AgentAttention("agent_swin_tiny stage 1", 56, 3, 9),
    AgentAttention("agent_swin_tiny stage 2", 28, 6, 16),
    AgentAttention("agent_swin_tiny stage 3", 14, 12, 49),
    AgentAttention("agent_pvt_tiny stage 1", 56, 1, 9, dim=64),
    AgentAttention("agent_pvt_tiny stage 2", 28, 2, 16, dim=64),
    AgentAttention("agent_pvt_tiny stage 3", 14, 5, 49, dim=64),
    AgentAttention("agent_pvt_tiny stage 4", 7, 8, 49, dim=64),
    AgentAttention("agent_deit_tiny", 14, 3, 49, dim=64, prefix=1),
    AgentAttention("agent_deit_small_448", 28, 6, 49, dim=64, prefix=1),
    AgentAttention("agent_deit_base", 14, 12, 81, dim=64, prefix=1),
    AgentAttention("agent_cswin_base stage 1", 56, 4, 9, dim=24),
    AgentAttention("agent_swin_base_384 stage 1", 96, 4, 9),
    EfficientLocalAttention("elaresnet50_t stage 1", 56, 64, kernel=5, norm_groups=32),
    EfficientLocalAttention("elaresnet50_b stage 1", 56, 64),
    EfficientLocalAttention("elaresnet50_s stage 1", 56, 64, kernel=5, width=8),
    EfficientLocalAttention("elaresnet50_l stage 1", 56, 64, width=8),
    EfficientLocalAttention("elaresnet50_l stage 2", 28, 128, width=8),
    EfficientLocalAttention("elaresnet50_l stage 3", 14, 256, width=8),
    EfficientLocalAttention("elaresnet50_l stage 4", 7, 512, width=8),
    EfficientLocalAttention("elaresnet50_t at 512, stage 1", 128, 64, kernel=5, norm_groups=32),
    EfficientLocalAttention("elaresnet50_l at 512, stage 1", 128, 64, width=8),
    EfficientLocalAttention("elamobilenetv2_100_b, 144 channels", 56, 144),
    EfficientLocalAttention("elamobilenetv2_100_b, 384 channels", 14, 384),
    EfficientLocalAttention("elamobilenetv2_100_b, 960 channels", 7, 960),
    MultiQueryPool("EP32 on ViT-B/16", 196, 768, 32),
    MultiQueryPool("EP32 on ViT-B/16, trained", 196, 768, 32, frozen=False),
    MultiQueryPool("EP32 on ViT-S/16", 196, 384, 32),
    MultiQueryPool("EP12 on ViT-B/16", 196, 768, 12),
    MultiQueryPool("EP32 on ViT-L/14", 256, 1024, 32),
    RoIAlign("Mask R-CNN's box head, P3", 100, 256, 128, 7, (112, 224)),
    RoIAlign("Mask R-CNN's mask head, P3", 100, 256, 32, 14, (112, 224)),
    RoIAlign("ROICtrl at 64 x 64", 64, 320, 30, 25, (64, 320), 1 / 8, 2),
    RoIAlign("ROICtrl at 32 x 32", 32, 640, 30, 19, (64, 320), 1 / 16, 2),
    RoIAlign("ROICtrl at 16 x 16", 16, 1280, 30, 13, (64, 320), 1 / 32, 2),
    RoIAlign("ROICtrl at 8 x 8", 8, 1280, 30, 7, (64, 320), 1 / 64, 2),
    RoIUnpool("ROICtrl at 64 x 64", 64, 320, 25),
    RoIUnpool("ROICtrl at 32 x 32", 32, 640, 19),
    RoIUnpool("ROICtrl at 16 x 16", 16, 1280, 13),
    RoIUnpool("ROICtrl at 8 x 8", 8, 1280, 7),
)
OPS = tuple(dict.fromkeys(case.op for case in CASES))


def select_cases(ops: Collection[str] = OPS, text: str = "") -> list[Case]:
    """The cases of ops whose names contain a text; all without either.

    Raises:
        UserError: If there is no such op or case.
    """
    for op in ops:
        if op not in OPS:
            raise UserError(f"no such op: {op}; there are {', '.join(OPS)}")
    cases = [case for case in CASES if case.op in (ops or OPS) and text in case.name]
    if not cases:
        raise UserError(f"no case is named like {text!r}")
    return cases
