"""The ways to compute the ops without this package, to measure the kernels against.

A peer is made for a case and its inputs, with everything prepared that a model would prepare once,
such as masks; what it returns takes the same inputs as the op and gives the same output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from . import cases

Tensors = Mapping[str, torch.Tensor]
Function = Callable[..., torch.Tensor]
Peer = Callable[..., Function]

MOST_LOGITS = 2**29
"""Most elements of a stored attention matrix or mask: what needs more memory is not tried."""


class CannotRunError(Exception):
    """Why a peer cannot compute a case."""


def compiled(peer: Peer) -> Peer:
    """A peer through ``torch.compile``."""

    def make(case: cases.Case, inputs: Tensors) -> Function:
        return torch.compile(peer(case, inputs), dynamic=False, fullgraph=True)

    return make


def _require_storable(logits: int) -> None:
    if logits > MOST_LOGITS:
        raise CannotRunError(f"would store {logits * 4 / 2**30:.0f} GiB of logits")


def _flex(q, k, v, **kwargs):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v, **kwargs)


# Window attention: partition, attend, merge, as Swin does.


def _to_windows(x: torch.Tensor, window: int, shift: int) -> torch.Tensor:
    """A fused map (B, H, W, 3, heads, dim) to (3, B * windows, heads, tokens, dim)."""
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)  # (3, B, rows, columns, heads, window, window, dim)
    return x.flatten(5, 6).flatten(1, 3)


def _from_windows(x: torch.Tensor, side: int, window: int, shift: int) -> torch.Tensor:
    """Windows (B * windows, heads, tokens, dim) to a map (B, H, W, heads, dim)."""
    count = side // window
    x = x.unflatten(2, (window, window)).unflatten(0, (-1, count, count))
    x = x.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)
    return x.roll((shift, shift), (1, 2)) if shift else x


def _shift_regions(case: cases.WindowAttention, device: torch.device) -> torch.Tensor:
    """Numbers (windows, tokens) of the regions that shifted windows are made of."""
    side, window, shift = case.side, case.window, case.shift
    part = torch.zeros(side, dtype=torch.int64, device=device)
    part[side - window : side - shift] = 1
    part[side - shift :] = 2
    regions = (part[:, None] * 3 + part).unflatten(1, (-1, window)).unflatten(0, (-1, window))
    return regions.transpose(1, 2).flatten(2).flatten(0, 1)


def _shift_mask(case: cases.WindowAttention, inputs: Tensors) -> torch.Tensor | None:
    """Mask (windows, tokens, tokens) of shifted windows, made once as Swin's buffer is."""
    if not case.shift:
        return None
    qkv = inputs["qkv"]
    regions = _shift_regions(case, qkv.device)
    mask = torch.zeros(*regions.shape, regions.shape[1], dtype=qkv.dtype, device=qkv.device)
    return mask.masked_fill(regions[:, :, None] != regions[:, None], float("-inf"))


def window_sdpa(case: cases.WindowAttention, inputs: Tensors) -> Function:
    """``scaled_dot_product_attention`` with bias and mask, as timm's Swin calls it."""
    mask = _shift_mask(case, inputs)

    def run(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = _to_windows(qkv, case.window, case.shift)
        if mask is not None:
            bias = bias + mask[:, None]  # (windows, heads, tokens, tokens)
            bias = bias.expand(q.shape[0] // mask.shape[0], *bias.shape).flatten(0, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return _from_windows(out, case.side, case.window, case.shift)

    return run


def window_eager(case: cases.WindowAttention, inputs: Tensors) -> Function:
    """Products and softmax one by one, as Swin was published."""
    mask = _shift_mask(case, inputs)

    def run(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = _to_windows(qkv, case.window, case.shift)
        logits = (q * case.dim**-0.5) @ k.transpose(-2, -1) + bias
        if mask is not None:
            logits = logits.unflatten(0, (-1, mask.shape[0])) + mask[:, None]
            logits = logits.flatten(0, 1)
        return _from_windows(logits.softmax(-1) @ v, case.side, case.window, case.shift)

    return run


def window_flex(case: cases.WindowAttention, inputs: Tensors) -> Function:
    """FlexAttention over windows, bias and mask as its modifications of scores."""
    from torch.nn.attention.flex_attention import create_block_mask

    device = inputs["qkv"].device
    regions = _shift_regions(case, device) if case.shift else None
    area = case.window**2
    mask = None
    if regions is not None:
        windows = len(regions)

        def same_region(b, h, i, j):
            return regions[b % windows, i] == regions[b % windows, j]

        count = len(inputs["qkv"]) * windows
        mask = create_block_mask(same_region, count, None, area, area, device=device)

    def run(qkv: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = _to_windows(qkv, case.window, case.shift)
        out = _flex(q, k, v, score_mod=lambda s, b, h, i, j: s + bias[h, i, j], block_mask=mask)
        return _from_windows(out, case.side, case.window, case.shift)

    return run


# Neighborhood attention.


def _neighborhood_starts(case: cases.NeighborhoodAttention, device: torch.device) -> torch.Tensor:
    """First key, in steps of the dilation, of each position of an axis (side,)."""
    position = torch.arange(case.side, device=device)
    group = position % case.dilation
    length = (case.side - group + case.dilation - 1) // case.dilation
    first = (position // case.dilation - case.kernel // 2).clamp(min=0)
    return torch.minimum(first, length - case.kernel)


def _neighborhood_axis(case: cases.NeighborhoodAttention, device: torch.device) -> torch.Tensor:
    """Which keys each position of an axis sees, (side, side)."""
    position = torch.arange(case.side, device=device)
    step = position // case.dilation - _neighborhood_starts(case, device)[:, None]
    same = position % case.dilation == position[:, None] % case.dilation
    return same & (step >= 0) & (step < case.kernel)


def neighborhood_sdpa(case: cases.NeighborhoodAttention, inputs: Tensors) -> Function:
    """``scaled_dot_product_attention`` of all pairs with a dense mask."""
    qkv, side = inputs["qkv"], case.side
    _require_storable(case.heads * side**4)
    axis = _neighborhood_axis(case, qkv.device)
    mask = (axis[:, None, :, None] & axis[None, :, None]).flatten(2).flatten(0, 1)  # (N, N)
    position = torch.arange(side, device=qkv.device) // case.dilation
    step = (position - position[:, None] + case.kernel - 1).clamp(0, 2 * case.kernel - 2)
    negative = torch.zeros(mask.shape, dtype=qkv.dtype, device=qkv.device)
    negative.masked_fill_(~mask, float("-inf"))

    def run(qkv: torch.Tensor, rpb: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)  # (B, heads, N, dim)
        bias = negative
        if rpb is not None:
            dense = rpb[:, step][..., step].permute(0, 1, 3, 2, 4)  # (heads, H, W, H, W)
            bias = bias + dense.flatten(3).flatten(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.transpose(1, 2).unflatten(1, (side, side))

    return run


def neighborhood_tiles(case: cases.NeighborhoodAttention, inputs: Tensors) -> Function:
    """``scaled_dot_product_attention`` of square tiles of queries and the keys around them."""
    qkv, side, kernel = inputs["qkv"], case.side, case.kernel
    tile = next((t for t in (14, 16, 7, 8) if side % t == 0 and t + kernel - 1 <= side), None)
    if case.dilation > 1 or tile is None:
        raise CannotRunError("tiles with a halo are for maps larger than them, without dilation")
    starts = _neighborhood_starts(case, qkv.device)
    reach = tile + kernel - 1
    first = starts[::tile].clamp(max=side - reach)
    keys = first[:, None] + torch.arange(reach, device=qkv.device)  # (tiles, reach)
    step = keys[:, None] - starts.view(-1, tile)[:, :, None]
    seen = (step >= 0) & (step < kernel)  # (tiles, tile, reach)
    mask = seen[:, None, :, None, :, None] & seen[None, :, None, :, None]
    mask = mask.flatten(4).flatten(2, 3).flatten(0, 1)  # (tiles², tile², reach²)
    negative = torch.zeros(mask.shape, dtype=qkv.dtype, device=qkv.device)
    negative.masked_fill_(~mask, float("-inf"))
    position = torch.arange(side, device=qkv.device).view(-1, tile, 1)
    offset = (keys[:, None] - position + kernel - 1).clamp(0, 2 * kernel - 2)

    def run(qkv: torch.Tensor, rpb: torch.Tensor | None = None) -> torch.Tensor:
        batch, count = len(qkv), side // tile
        bias = negative[:, None]
        if rpb is not None:
            dense = rpb[:, offset][..., offset]  # (heads, tiles, tile, reach, tiles, tile, reach)
            dense = dense.permute(1, 4, 0, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(0, 1)
            bias = bias + dense
        bias = bias.expand(batch, -1, case.heads, -1, -1).flatten(0, 1)
        q = qkv[:, :, :, 0].unflatten(2, (count, tile)).unflatten(1, (count, tile))
        q = q.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(0, 2)
        kv = qkv[:, :, :, 1:].index_select(1, keys.flatten()).index_select(2, keys.flatten())
        kv = kv.unflatten(2, keys.shape).unflatten(1, keys.shape)
        k, v = kv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(1, 3)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out = out.unflatten(2, (tile, tile)).unflatten(0, (batch, count, count))
        return out.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)

    return run


def neighborhood_natten(case: cases.NeighborhoodAttention, inputs: Tensors) -> Function:
    """NATTEN itself; on the CPU it has no fused kernels and no gradient."""
    if find_spec("natten") is None:
        raise CannotRunError("natten is not installed: see https://natten.org")
    if "rpb" in inputs:
        raise CannotRunError("NATTEN has no relative position bias since 0.20")
    from natten.functional import na2d

    def run(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.contiguous() for x in qkv.unbind(3))
        return na2d(q, k, v, kernel_size=case.kernel, dilation=case.dilation)

    return run


def neighborhood_flex(case: cases.NeighborhoodAttention, inputs: Tensors) -> Function:
    """FlexAttention with the neighborhood as its mask."""
    return _neighborhood_flex(case, inputs, stored=True)


def neighborhood_flex_compiled(case: cases.NeighborhoodAttention, inputs: Tensors) -> Function:
    """The same through ``torch.compile``, which stores no logits."""
    run = _neighborhood_flex(case, inputs, stored=False)
    return torch.compile(run, dynamic=False, fullgraph=True)


def _neighborhood_flex(
    case: cases.NeighborhoodAttention, inputs: Tensors, stored: bool
) -> Function:
    from torch.nn.attention.flex_attention import create_block_mask

    qkv, side, dilation, kernel = inputs["qkv"], case.side, case.dilation, case.kernel
    if stored:
        _require_storable(len(qkv) * case.heads * side**4)

    def sees(query, key):
        group = query % dilation
        last = (side - group + dilation - 1) // dilation - kernel
        start = torch.minimum((query // dilation - kernel // 2).clamp(min=0), last)
        step = key // dilation - start
        return (key % dilation == group) & (step >= 0) & (step < kernel)

    def neighbors(b, h, i, j):
        return sees(i // side, j // side) & sees(i % side, j % side)

    mask = create_block_mask(neighbors, None, None, side**2, side**2, device=qkv.device)

    def run(qkv: torch.Tensor, rpb: torch.Tensor | None = None) -> torch.Tensor:
        def add_bias(score, b, h, i, j):
            y = (j // side) // dilation - (i // side) // dilation + kernel - 1
            x = (j % side) // dilation - (i % side) // dilation + kernel - 1
            last = 2 * kernel - 2
            return score + rpb[h, y.clamp(0, last), x.clamp(0, last)]

        q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)
        out = _flex(q, k, v, score_mod=None if rpb is None else add_bias, block_mask=mask)
        return out.transpose(1, 2).unflatten(1, (side, side))

    return run


# Bi-level routing attention.


def _to_regions(x: torch.Tensor, regions: int) -> torch.Tensor:
    """A map (B, H, W, ...) to (B, regions², tokens, ...)."""
    size = x.shape[1] // regions
    x = x.unflatten(2, (regions, size)).unflatten(1, (regions, size))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _from_regions(x: torch.Tensor, regions: int) -> torch.Tensor:
    """(B, regions², tokens, ...) to a map (B, H, W, ...)."""
    size = round(x.shape[2] ** 0.5)
    x = x.unflatten(2, (size, size)).unflatten(1, (regions, regions))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _route(case: cases.BilevelRoutingAttention, qk: torch.Tensor) -> torch.Tensor:
    """Routing indices (B, P, topk) by regions of queries and keys (B, P, tokens, 2, heads, dim)."""
    q, k = qk.detach().float().mean(2).flatten(3).unbind(2)
    return (q @ k.transpose(-2, -1)).topk(case.topk).indices


def bilevel_gather(case: cases.BilevelRoutingAttention, inputs: Tensors) -> Function:
    """The authors' formulation: the chosen regions are gathered, then attended to."""

    def run(qkv: torch.Tensor) -> torch.Tensor:
        qkv = _to_regions(qkv, case.regions)  # (B, P, tokens, 3, heads, dim)
        routing = _route(case, qkv[:, :, :, :2])
        q, kv = qkv[:, :, :, 0], qkv[:, :, :, 1:]
        count = kv.shape[1]
        index = routing.reshape(*routing.shape, *[1] * (kv.ndim - 2))
        index = index.expand(-1, -1, -1, *kv.shape[2:])
        chosen = kv[:, None].expand(-1, count, *kv.shape[1:]).gather(2, index)
        k, v = chosen.flatten(2, 3).permute(3, 0, 1, 4, 2, 5)  # (B, P, heads, keys, dim)
        logits = (q.transpose(2, 3) * case.scale) @ k.transpose(-2, -1)
        return _from_regions((logits.softmax(-1) @ v).transpose(2, 3), case.regions)

    return run


def bilevel_sdpa(case: cases.BilevelRoutingAttention, inputs: Tensors) -> Function:
    """Whole regions are selected, then ``scaled_dot_product_attention``."""

    def run(qkv: torch.Tensor) -> torch.Tensor:
        qkv = _to_regions(qkv, case.regions)
        routing = _route(case, qkv[:, :, :, :2])
        batch, count = qkv.shape[:2]
        routing = routing + torch.arange(batch, device=qkv.device)[:, None, None] * count
        chosen = qkv[:, :, :, 1:].flatten(0, 1).index_select(0, routing.flatten())
        chosen = chosen.unflatten(0, (batch * count, -1)).flatten(1, 2)
        k, v = chosen.permute(2, 0, 3, 1, 4)  # (B * P, heads, keys, dim)
        q = qkv[:, :, :, 0].flatten(0, 1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, scale=case.scale)
        return _from_regions(out.transpose(1, 2).unflatten(0, (batch, count)), case.regions)

    return run


def bilevel_flex(case: cases.BilevelRoutingAttention, inputs: Tensors) -> Function:
    """FlexAttention over tokens in the order of regions, its mask made from each routing."""
    return _bilevel_flex(case, inputs, stored=True)


def bilevel_flex_compiled(case: cases.BilevelRoutingAttention, inputs: Tensors) -> Function:
    """The same with attention through ``torch.compile``."""
    return _bilevel_flex(case, inputs, stored=False)


def _bilevel_flex(case: cases.BilevelRoutingAttention, inputs: Tensors, stored: bool) -> Function:
    from torch.nn.attention.flex_attention import create_block_mask

    tokens, area = case.side**2, (case.side // case.regions) ** 2
    _require_storable(len(inputs["qkv"]) * tokens**2 * (case.heads if stored else 1))
    attend = _flex if stored else torch.compile(_flex, dynamic=False)

    def run(qkv: torch.Tensor) -> torch.Tensor:
        qkv = _to_regions(qkv, case.regions)
        routing = _route(case, qkv[:, :, :, :2])
        batch, count = qkv.shape[:2]
        chosen = torch.zeros(batch, count, count, dtype=torch.bool, device=qkv.device)
        chosen.scatter_(2, routing, True)

        def routed(b, h, i, j):
            return chosen[b, i // area, j // area]

        mask = create_block_mask(routed, batch, None, tokens, tokens, device=qkv.device)
        q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4)
        out = attend(q, k, v, block_mask=mask, scale=case.scale)
        return _from_regions(out.transpose(1, 2).unflatten(1, (count, area)), case.regions)

    return run


# Agent attention.


def _agent_bias(parts: Tensors, name: str) -> torch.Tensor:
    """A dense bias (heads, agents, tokens) of the parts ``name_rows`` and so on."""
    rows, columns, block = (parts[f"{name}_{part}"] for part in ("rows", "columns", "block"))
    resized = F.interpolate(block, (rows.shape[2], columns.shape[2]), mode="bilinear")
    dense = (resized + rows[..., None] + columns[..., None, :]).flatten(2)
    prefix = parts.get(f"{name}_prefix")
    return dense if prefix is None else torch.cat([prefix, dense], -1)


def agent_sdpa(case: cases.AgentAttention, inputs: Tensors) -> Function:
    """Two calls of ``scaled_dot_product_attention`` with dense biases."""

    def run(qkv: torch.Tensor, agents: torch.Tensor, **parts: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        values = F.scaled_dot_product_attention(agents, k, v, attn_mask=_agent_bias(parts, "key"))
        bias = _agent_bias(parts, "query").transpose(1, 2)
        return F.scaled_dot_product_attention(q, agents, values, attn_mask=bias)

    return run


def agent_eager(case: cases.AgentAttention, inputs: Tensors) -> Function:
    """Products and softmaxes one by one, as Agent Attention was published."""

    def run(qkv: torch.Tensor, agents: torch.Tensor, **parts: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        agents = agents * case.dim**-0.5
        gathering = (agents @ k.transpose(-2, -1) + _agent_bias(parts, "key")).softmax(-1)
        logits = q @ agents.transpose(-2, -1) + _agent_bias(parts, "query").transpose(1, 2)
        return logits.softmax(-1) @ (gathering @ v)

    return run


# Efficient local attention.


def ela_eager(case: cases.EfficientLocalAttention, inputs: Tensors) -> Function:
    """Strip means, convolution, normalisation and gates one by one, as ELA was published."""

    def run(
        x: torch.Tensor, conv: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        padding, groups = conv.shape[2] // 2, x.shape[1] // conv.shape[1]

        def gate(strip: torch.Tensor) -> torch.Tensor:
            strip = F.conv1d(strip, conv, padding=padding, groups=groups)
            return F.group_norm(strip, case.norm_groups, weight, bias).sigmoid()

        return x * gate(x.mean(3))[:, :, :, None] * gate(x.mean(2))[:, :, None]

    return run


# Pooling of tokens by several queries.


def _pooling_weights(x: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    return (queries @ x.transpose(1, 2) * x.shape[2] ** -0.5).softmax(-1)  # (B, M, N)


def pool_textbook(case: cases.MultiQueryPool, inputs: Tensors) -> Function:
    """All tokens are projected, then each query weighs its channels of them."""

    def run(x: torch.Tensor, queries: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        values = F.linear(x, value).unflatten(2, (len(queries), -1))
        weights = _pooling_weights(x, queries)
        return torch.einsum("bmn,bnmc->bmc", weights, values).flatten(1)

    return run


def pool_sdpa(case: cases.MultiQueryPool, inputs: Tensors) -> Function:
    """``scaled_dot_product_attention`` of one query a head, which share their keys."""

    def run(x: torch.Tensor, queries: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        values = F.linear(x, value).unflatten(2, (len(queries), -1)).transpose(1, 2)
        heads = queries[None, :, None].expand(len(x), -1, -1, -1)
        keys = x[:, None].expand(-1, len(queries), -1, -1)
        return F.scaled_dot_product_attention(heads, keys, values).flatten(1)

    return run


def pool_first(case: cases.MultiQueryPool, inputs: Tensors) -> Function:
    """The projection behind the pooling, where there is less to project."""

    def run(x: torch.Tensor, queries: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        pooled = _pooling_weights(x, queries) @ x  # (B, M, D)
        value = value.unflatten(0, (len(queries), -1))
        return torch.einsum("bmd,mcd->bmc", pooled, value).flatten(1)

    return run


# The convolution beside attention.


def conv_contiguous(case: cases.DepthwiseConv, inputs: Tensors) -> Function:
    """torch's convolution of a copy of the values, (B, C, H, W) in memory."""

    def run(
        qkv: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor:
        x = qkv[:, :, :, 2].permute(0, 3, 1, 2).contiguous()
        x = F.conv2d(x, weight, bias, padding=case.kernel // 2, groups=case.channels)
        return residual + x.permute(0, 2, 3, 1)

    return run


# Pooling of regions, and its inverse.


def roi_align_torchvision(case: cases.RoIAlign, inputs: Tensors) -> Function:
    """torchvision's operator; in fp32, as it runs under autocast."""
    from torchvision.ops import roi_align

    def run(x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        sampling = case.bins, case.spatial_scale, case.sampling_ratio, True
        return roi_align(x.float(), boxes, *sampling).to(x.dtype)

    return run


def _unpool_places(case: cases.RoIUnpool, corners: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Bins (R, side) at pixels along an axis, and whether pixels are inside and bins complete."""
    pixel = torch.arange(case.side, device=corners.device)
    first, end = (corners * case.spatial_scale - 0.5).ceil()[:, :, None].unbind(1)
    place = (pixel - first) / (end - first) * case.bins
    return place, (pixel >= first) & (pixel < end) & (place < case.bins - 1 + 1e-5)


def roi_unpool_products(case: cases.RoIUnpool, inputs: Tensors) -> Function:
    """Two products with matrices of the weights along each axis."""

    def matrices(corners: torch.Tensor) -> torch.Tensor:
        place, inside = _unpool_places(case, corners)
        bins = torch.arange(case.bins, device=corners.device)
        weight = (1 - (place[:, :, None] - bins).abs()).clamp(min=0)
        return (weight * inside[:, :, None])[:, None]  # (R, 1, side, bins)

    def run(rois: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        down, across = (matrices(boxes[:, axis::2]).to(rois.dtype) for axis in (1, 0))
        return down @ rois @ across.transpose(-2, -1)

    return run


def roi_unpool_grid(case: cases.RoIUnpool, inputs: Tensors) -> Function:
    """``grid_sample`` at the pixels' places, those without one far off the region."""

    def run(rois: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        def places(corners: torch.Tensor) -> torch.Tensor:
            place, inside = _unpool_places(case, corners)
            return torch.where(inside, place.clamp(max=case.bins - 1) * 2 / (case.bins - 1) - 1, 9)

        y, x = places(boxes[:, 1::2]), places(boxes[:, ::2])
        grid = torch.stack(
            [x[:, None].expand(-1, case.side, -1), y[:, :, None].expand(-1, -1, case.side)], -1
        )
        out = F.grid_sample(rois.float(), grid, align_corners=True)
        return out.to(rois.dtype)

    return run
