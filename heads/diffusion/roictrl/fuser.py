"""The fuser of one transformer block (ROICtrl, section 3)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import nn
from torch.utils.checkpoint import checkpoint

from ....kernels import roi_align, roi_unpool
from ....kernels.roi_unpool import MODES
from .instances import Instances

__all__ = ["GATES", "ROI_SIZES", "SHUFFLES", "Call", "ROIFuser", "level_of", "roi_size"]

ROI_SIZES = {8: 25, 16: 19, 32: 13, 64: 7}
"""Side of pooled regions by how many pixels of the image one of the map covers."""

SHUFFLES = ("train_only", "always", "never")
GATES = ("official_max", "sum")

PIXELS = 8
"""Pixels of the image along a side of one of the latents."""

CHUNK = 4
"""Regions that are maps of all channels at the same time."""


def roi_size(rate: int, sizes: Mapping[int, int] | None = None) -> int:
    """Side of pooled regions on a map of a rate: of the table, or as the table goes on."""
    sizes = ROI_SIZES if sizes is None else sizes
    return sizes[rate] if rate in sizes else max(7, round(25 - 6 * math.log2(rate / PIXELS)))


class Level(NamedTuple):
    """A map in the UNet: its size, and how many pixels of the image one of it covers."""

    height: int
    width: int
    rate: int


def level_of(tokens: int, latent_size: tuple[int, int]) -> Level:
    """The map that so many tokens are.

    Args:
        tokens: Their number.
        latent_size: Height and width of the latents, which strided convolutions halve and round up.

    Raises:
        ValueError: If they are no such map.
    """
    height, width = latent_size
    rate = PIXELS
    while height * width > tokens:
        height, width, rate = (height + 1) // 2, (width + 1) // 2, rate * 2
    if height * width != tokens:
        raise ValueError(
            f"{tokens} tokens are no map of latents of {latent_size[0]} x {latent_size[1]} that "
            "were halved: ROICtrl cannot be used where tokens are merged or dropped"
        )
    return Level(height, width, rate)


@dataclasses.dataclass(eq=False)
class Call:
    """What one call of the UNet gives its fusers.

    Attributes:
        instances: Of the images in the batch.
        latent_size: Height and width of the latents.
        rois: Taken boxes behind the index of their image, in pixels of the image, (V, 5), fp32.
        objs: Tokens of the boxes of all slots, (B, R, D).
    """

    instances: Instances
    latent_size: tuple[int, int]
    rois: torch.Tensor | None = None
    objs: torch.Tensor | None = None

    def place(self, device: torch.device, dtype: torch.dtype, embed: nn.Module) -> None:
        """Moves the instances to where the UNet computes, and embeds their boxes."""
        self.instances = self.instances.to(device, dtype)
        boxes = self.instances.boxes
        height, width = (PIXELS * side for side in self.latent_size)
        self.rois = self.instances.rois * boxes.new_tensor([1, width, height, width, height])
        self.objs = embed(boxes, self.instances.masks)


class SelfAttention(nn.Module):
    """Self-attention with the names of diffusers' ``Attention``, of which loaders of LoRA,
    IP-Adapter and processors know nothing."""

    def __init__(self, dim: int, num_heads: int, dropout: float, **dd: Any):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False, **dd)
        self.to_k = nn.Linear(dim, dim, bias=False, **dd)
        self.to_v = nn.Linear(dim, dim, bias=False, **dd)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim, **dd), nn.Dropout(dropout)])

    def forward(self, x: torch.Tensor, queries: int | None = None) -> torch.Tensor:
        """Attention of the first queries, or all, among tokens (B, N, C)."""
        q, k, v = (
            layer(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.to_q, x[:, :queries]), (self.to_k, x), (self.to_v, x))
        )
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        for layer in self.to_out:
            x = layer(x)
        return x


class ChannelGate(nn.Module):
    """Scales of the maps of logits, from what each of them has (``official_max`` or ``sum``)."""

    def __init__(self, maps: int, **dd: Any):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(maps, maps, **dd), nn.ReLU(), nn.Linear(maps, maps, **dd)
        )

    def forward(
        self, logits: torch.Tensor, present: torch.Tensor, order: torch.Tensor | None, mode: str
    ) -> torch.Tensor:
        """Scales (B, R + 1, 1) of logits (B, R + 1, N), zeros where a map is not present."""
        pooled = [logits.amax(-1)]
        if mode == "sum":
            pooled.append(logits.sum(-1) / present.sum(-1).clamp(min=1))
        dtype = self.mlp[0].weight.dtype
        raw = []
        for values in pooled:
            if order is not None:
                values = values[:, order]
            values = self.mlp(values.to(dtype))
            raw.append(values if order is None else values[:, order.argsort()])
        return sum(raw).sigmoid()[..., None]


class FuseWeights(nn.Module):
    """Softmax over the map of the whole image and those of regions, at each pixel."""

    def __init__(self, dim: int, max_instances: int, **dd: Any):
        super().__init__()
        self.channel_reduction = nn.Conv2d(dim, 1, kernel_size=1, bias=False, **dd)
        self.channel_gate = ChannelGate(max_instances + 1, **dd)

    def reduce(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, N) of tokens (B, N, C), in fp32 at least."""
        logits = self.channel_reduction(tokens.transpose(1, 2)[..., None])[:, 0, :, 0]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class ROIFuser(nn.Module):
    """Adds to a block what its cross-attention gives captions in their boxes.

    Weights bear the authors' names; their number is 20 C^2 + 83 C + 1987 with 30 slots.

    The softmax over maps is computed without the maps: logits are linear in features, as is
    unpooling, so that regions are reduced to logits before they are unpooled. Of the features
    themselves no more than ``CHUNK`` regions are maps at a time, in the backward pass too.
    A pixel belongs to a region where unpooling puts anything, not where its channels do not sum to
    exactly 0, as in the authors' code, which low precision makes happen by chance.

    Args:
        dim: Channels C of the block.
        num_heads: Heads of its attention.
        box_dim: Channels of the tokens of boxes.
        max_instances: Slots R of an image.
        dropout: Behind both self-attentions and within the feed-forward network.
        unpool_mode: Of ``visattn.kernels.roi_unpool``; the authors' weights need ``"official"``.
        shuffle: When the gate sees slots in random order, drawn from the CPU's global generator:
            ``"train_only"``, ``"always"`` as in the authors' code, or ``"never"``.
        gate: What the gate sees of each map: its maximum (``"official_max"``), or also its mean
            over pixels that are present (``"sum"``), which the paper's figure has.
        roi_sizes: Sides of pooled regions in place of ``ROI_SIZES``.
        device: Where weights are.
        dtype: Type of the weights.

    Raises:
        ValueError: If a switch has no such value.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        box_dim: int = 64,
        max_instances: int = 30,
        dropout: float = 0.2,
        unpool_mode: str = "official",
        shuffle: str = "train_only",
        gate: str = "official_max",
        roi_sizes: Mapping[int, int] | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        switches = {
            "unpool_mode": (unpool_mode, MODES),
            "shuffle": (shuffle, SHUFFLES),
            "gate": (gate, GATES),
        }
        for name, (value, values) in switches.items():
            if value not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {value!r}")
        dd = {"device": device, "dtype": dtype}
        self.max_instances = max_instances
        self.unpool_mode = unpool_mode
        self.shuffle = shuffle
        self.gate = gate
        self.roi_sizes = dict(ROI_SIZES if roi_sizes is None else roi_sizes)
        self.enabled = True
        self.regularisation: torch.Tensor | None = None
        """Mean weight of the whole image's map in boxes, of the last forward pass."""

        self.norm1 = nn.LayerNorm(dim, **dd)
        self.roi_self_attn = SelfAttention(dim, num_heads, dropout, **dd)
        self.alpha_roi_self_attn = nn.Parameter(torch.zeros((), **dd))

        self.roiattn_fuser = FuseWeights(dim, max_instances, **dd)

        self.norm2 = nn.LayerNorm(dim, **dd)
        self.context_proj = nn.Linear(box_dim, dim, **dd)
        self.coord_self_attn = SelfAttention(dim, num_heads, dropout, **dd)
        self.alpha_coord_self_attn = nn.Parameter(torch.zeros((), **dd))

        self.norm3 = nn.LayerNorm(dim, **dd)
        self.ff = FeedForward(dim, activation_fn="geglu", dropout=dropout).to(**dd)
        self.alpha_dense = nn.Parameter(torch.zeros((), **dd))

    def extra_repr(self) -> str:
        """The switches."""
        return (
            f"max_instances={self.max_instances}, unpool_mode={self.unpool_mode!r}, "
            f"shuffle={self.shuffle!r}, gate={self.gate!r}"
        )

    def forward(
        self,
        normed: torch.Tensor,
        hidden: torch.Tensor,
        attended: torch.Tensor,
        cross_attention: Any,
        call: Call,
        record: bool = True,
    ) -> torch.Tensor:
        """What the block adds to its hidden state in place of the cross-attention's output.

        Args:
            normed: The normed hidden state n, (B, N, C).
            hidden: The hidden state h before, (B, N, C).
            attended: The cross-attention's output g for the whole image's caption, (B, N, C).
            cross_attention: Function of tokens (V, P^2, C) of regions that gives what the block's
                cross-attention gives for their captions.
            call: Instances of the batch.
            record: Whether ``regularisation`` is set.

        Returns:
            The new hidden state less h, (B, N, C).

        Raises:
            ValueError: If tokens are no map of the latents.
        """
        level = level_of(normed.shape[1], call.latent_size)
        fused, penalty = self._fuse(normed, attended, cross_attention, call, level)
        if record:
            self.regularisation = penalty
        context = self.context_proj(call.objs)
        tokens = self.norm2(torch.cat((hidden + fused, context), 1))
        placed = self.coord_self_attn(tokens, normed.shape[1])
        fused = fused + self.alpha_coord_self_attn.tanh() * placed
        return fused + self.alpha_dense.tanh() * self.ff(self.norm3(hidden + fused))

    def _fuse(
        self,
        normed: torch.Tensor,
        attended: torch.Tensor,
        cross_attention: Any,
        call: Call,
        level: Level,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The blend of the whole image's map with those of regions, and its penalty."""
        if len(call.rois) == 0:
            return attended, attended.new_zeros((), dtype=torch.float32)
        maps = normed.unflatten(1, level[:2]).permute(0, 3, 1, 2)  # (B, C, h, w), no copy
        side = roi_size(level.rate, self.roi_sizes)
        pooled = roi_align(maps, call.rois, side, 1 / level.rate, sampling_ratio=2)
        pooled = pooled.permute(0, 2, 3, 1).flatten(1, 2)  # (V, P^2, C)
        regions = cross_attention(pooled).to(attended.dtype)
        among = self.roi_self_attn(self.norm1(regions)).to(regions.dtype)
        regions = regions + self.alpha_roi_self_attn.tanh() * among

        weights, present = self._weights(attended, regions, call, level)
        covered = present[:, 1:].any(1)  # (B, N)
        penalty = (weights[:, 0] * covered).sum() / covered.sum().clamp(min=1)
        return self._blend(attended, regions, weights.to(attended.dtype), call, level), penalty

    def _unpool(self, regions: torch.Tensor, boxes: torch.Tensor, level: Level) -> torch.Tensor:
        """Tokens (V, P^2, C) of regions on maps, (V, C, N)."""
        side = roi_size(level.rate, self.roi_sizes)
        regions = regions.transpose(1, 2).unflatten(2, (side, side))  # No copy.
        maps = roi_unpool(regions, boxes, level[:2], 1 / level.rate, self.unpool_mode)
        return maps.flatten(2)

    def _weights(
        self, attended: torch.Tensor, regions: torch.Tensor, call: Call, level: Level
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of all maps at each pixel, and which maps are there, (B, R + 1, N)."""
        whole = self.roiattn_fuser.reduce(attended)  # (B, N)
        reduced = self.roiattn_fuser.reduce(regions)  # (V, P^2)
        both = torch.stack((reduced, torch.ones_like(reduced)), 2)
        logit, inside = self._unpool(both, call.rois[:, 1:], level).unbind(1)  # (V, N)

        shape = call.instances.batch_size, self.max_instances + 1
        rows = _rows(call.instances)
        logits = whole.new_zeros(shape[0] * shape[1], whole.shape[1])
        present = torch.zeros_like(logits, dtype=torch.bool).index_copy(0, rows, inside > 0.5)
        present = present.unflatten(0, shape)
        present = torch.cat((torch.ones_like(present[:, :1]), present[:, 1:]), 1)
        logits = logits.index_copy(0, rows, logit).unflatten(0, shape)
        logits = torch.cat((whole[:, None], logits[:, 1:]), 1)

        order = None
        if self.shuffle == "always" or (self.shuffle == "train_only" and self.training):
            order = torch.cat((torch.zeros(1, dtype=torch.long), 1 + torch.randperm(shape[1] - 1)))
            order = order.to(logits.device)
        scale = self.roiattn_fuser.channel_gate(logits, present, order, self.gate)
        logits = (logits * scale).masked_fill(~present, torch.finfo(logits.dtype).min)
        return logits.softmax(1), present

    def _blend(
        self,
        attended: torch.Tensor,
        regions: torch.Tensor,
        weights: torch.Tensor,
        call: Call,
        level: Level,
    ) -> torch.Tensor:
        """The weighted sum of the maps, without all of them at a time."""

        def contribution(
            regions: torch.Tensor, shares: torch.Tensor, boxes: torch.Tensor
        ) -> torch.Tensor:
            maps = self._unpool(regions, boxes, level).transpose(1, 2)  # (n, N, C)
            total = maps[0] * shares[0, :, None]
            for i in range(1, len(maps)):
                total = torch.addcmul(total, maps[i], shares[i, :, None])
            return total

        recompute = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        shares = weights.flatten(0, 1)[_rows(call.instances)]  # (V, N)
        fused = list((attended * weights[:, 0, :, None]).unbind(0))
        start = 0
        for image, count in enumerate(call.instances.counts):
            stop = start + count
            for first in range(start, stop, CHUNK):
                part = slice(first, min(first + CHUNK, stop))
                given = regions[part], shares[part], call.rois[part, 1:]
                if recompute:
                    more = checkpoint(
                        contribution, *given, use_reentrant=False, preserve_rng_state=False
                    )
                else:
                    more = contribution(*given)
                fused[image] = fused[image] + more
            start = stop
        return torch.stack(fused)


def _rows(instances: Instances) -> torch.Tensor:
    """Where taken slots are among the maps of a batch, of which the whole image's comes first."""
    return instances.slots + instances.images + 1
