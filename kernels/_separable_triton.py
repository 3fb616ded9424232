"""Products of maps with sparse matrices along both axes, box by box, on GPUs.

What ``_separable_cpu`` computes, with the matrices (R, P, H) and (R, Q, W) stored dense, as a row
of bins (or pixels) gathered by scalars and one small matrix product with the other axis' weights.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ._rois import memory_format
from ._triton import dot, dot_precision, launch

__all__ = ["Weights", "empty_weights", "pool", "spread"]

CHANNELS, PIXELS, BINS = 64, 32, 32
"""Largest blocks; the next smaller power of two where there is less."""


class Weights(NamedTuple):
    """Weights of the boxes' bins at the pixels along one axis.

    ``dense`` is (R, bins, side), fp32; ``range`` (R, bins, 2), int32, has the first pixel of each
    bin whose weight is not zero and that behind the last, or (side, 0) if there is none.
    """

    dense: torch.Tensor
    range: torch.Tensor

    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """First pixel of a box and that behind its last, (R,) each."""
        return self.range[..., 0].amin(1), self.range[..., 1].amax(1)


def empty_weights(boxes: int, bins: int, side: int, device: torch.device) -> Weights:
    """Room for the weights."""
    return Weights(
        torch.empty(boxes, bins, side, device=device),
        torch.empty(boxes, bins, 2, dtype=torch.int32, device=device),
    )


@triton.jit
def separable_pool_kernel(
    p_x, p_maps, p_wy, p_wx, p_rows, p_left, p_right, p_out,
    C, H, W, x_m, x_c, x_y, x_x, o_r, o_c, o_y, o_x,
    P: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BX: tl.constexpr, BQ: tl.constexpr,
    OWN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    i_b = tl.program_id(0)
    i_r, i_p = (i_b // P).to(tl.int64), i_b % P
    i_c = tl.program_id(1) * BC + tl.arange(0, BC)[:, None].to(tl.int64)  # [BC, 1]
    i_q = tl.program_id(2) * BQ + tl.arange(0, BQ)[None, :]  # [1, BQ]
    i_m = i_r if OWN else tl.load(p_maps + i_r)
    top = tl.load(p_rows + (i_r * P + i_p) * 2)
    bottom = tl.load(p_rows + (i_r * P + i_p) * 2 + 1)
    p_wy += (i_r * P + i_p) * H
    b_out = tl.zeros([BC, BQ], tl.float32)
    right = tl.load(p_right + i_r)
    for start in range(tl.load(p_left + i_r), right, BX):
        i_x = start + tl.arange(0, BX)
        inside = (i_c < C) & (i_x[None, :] < right)
        p_b = p_x + i_m * x_m + i_c * x_c + i_x[None, :].to(tl.int64) * x_x
        p_b += top.to(tl.int64) * x_y
        b_row = tl.zeros([BC, BX], tl.float32)
        for y in range(top, bottom):
            b_x = tl.load(p_b, mask=inside, other=0.0)
            b_row += tl.load(p_wy + y) * b_x.to(tl.float32)
            p_b += x_y
        mask = (i_q < Q) & (i_x[:, None] < right)
        b_wx = tl.load(p_wx + (i_r * Q + i_q) * W + i_x[:, None], mask=mask, other=0.0)  # [BX, BQ]
        b_out += dot(b_row, b_wx, PRECISION)
    p_out += i_r * o_r + i_c * o_c + i_p * o_y + i_q * o_x
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=(i_c < C) & (i_q < Q))


@triton.jit
def separable_spread_kernel(
    p_v, p_order, p_offsets, p_wy, p_wx, p_top, p_bottom, p_left, p_right, p_out,
    C, H, W, v_r, v_c, v_y, v_x, o_m, o_c, o_y, o_x,
    P: tl.constexpr, Q: tl.constexpr, BC: tl.constexpr, BX: tl.constexpr, BP: tl.constexpr,
    BQ: tl.constexpr, OWN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(W, BX)
    i_b = tl.program_id(0)
    i_m, i_y = (i_b // (blocks * H)).to(tl.int64), i_b // blocks % H
    left = i_b % blocks * BX
    i_x = left + tl.arange(0, BX)[None, :]  # [1, BX]
    i_c = tl.program_id(1) * BC + tl.arange(0, BC)[:, None].to(tl.int64)  # [BC, 1]
    i_p = tl.arange(0, BP)
    if OWN:
        first, last = 0, 1
    else:
        first, last = tl.load(p_offsets + i_m), tl.load(p_offsets + i_m + 1)
    b_out = tl.zeros([BC, BX], tl.float32)
    for k in range(first, last):
        i_r = i_m if OWN else tl.load(p_order + k).to(tl.int64)
        across = (tl.load(p_left + i_r) < left + BX) & (tl.load(p_right + i_r) > left)
        down = (tl.load(p_top + i_r) <= i_y) & (tl.load(p_bottom + i_r) > i_y)
        if across & down:
            p_w = p_wy + i_r * P * H + i_y
            used = tl.load(p_w + i_p * H, mask=i_p < P, other=0.0) != 0
            low, high = tl.min(tl.where(used, i_p, P)), tl.max(tl.where(used, i_p + 1, 0))
            for start in range(0, Q, BQ):
                i_q = start + tl.arange(0, BQ)
                inside = (i_c < C) & (i_q[None, :] < Q)
                p_b = p_v + i_r * v_r + i_c * v_c + i_q[None, :].to(tl.int64) * v_x
                p_b += low.to(tl.int64) * v_y
                b_row = tl.zeros([BC, BQ], tl.float32)
                for i in range(low, high):
                    b_v = tl.load(p_b, mask=inside, other=0.0)
                    b_row += tl.load(p_w + i * H) * b_v.to(tl.float32)
                    p_b += v_y
                mask = (i_q[:, None] < Q) & (i_x < W)
                b_wx = tl.load(p_wx + (i_r * Q + i_q[:, None]) * W + i_x, mask=mask, other=0.0)
                b_out += dot(b_row, b_wx, PRECISION)  # [BC, BX]
    p_out += i_m * o_m + i_c * o_c + i_y.to(tl.int64) * o_y + i_x.to(tl.int64) * o_x
    tl.store(p_out, b_out.to(p_out.dtype.element_ty), mask=(i_c < C) & (i_x < W))


def pool(
    x: torch.Tensor, maps: torch.Tensor | None, ys: Weights, xs: Weights, last: bool
) -> torch.Tensor:
    """``Wy x Wxᵀ`` for each box: (R, C, P, Q).

    Args:
        x: Maps, (B, C, H, W).
        maps: Map of each box, (R,), int64; None if each has its own.
        ys: Weights along y.
        xs: Weights along x.
        last: Whether the result is to be channels last.
    """
    boxes, rows, height = ys.dense.shape
    columns, width = xs.dense.shape[1:]
    channels = x.shape[1]
    shape = (boxes, channels, rows, columns)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(last))
    left, right = xs.bounds() if boxes else (xs.range, xs.range)
    block, bins = _block(channels, CHANNELS), _block(columns, BINS)
    launch(
        separable_pool_kernel,
        (boxes * rows, triton.cdiv(channels, block), triton.cdiv(columns, bins)),
        p_x=x,
        p_maps=left if maps is None else maps,
        p_wy=ys.dense,
        p_wx=xs.dense,
        p_rows=ys.range,
        p_left=left,
        p_right=right,
        p_out=out,
        C=channels,
        H=height,
        W=width,
        P=rows,
        Q=columns,
        **_strides("x", "mcyx", x),
        **_strides("o", "rcyx", out),
        BC=block,
        BX=_block(width, PIXELS),
        BQ=bins,
        maxnreg=255,
        OWN=maps is None,
        PRECISION=_precision(x.dtype),
    )
    return out


def spread(
    values: torch.Tensor,
    maps: torch.Tensor | None,
    ys: Weights,
    xs: Weights,
    shape: tuple[int, ...],
    last: bool,
) -> torch.Tensor:
    """The sum of ``Wyᵀ values Wx`` over the boxes of each map, in the order of the boxes.

    Args:
        values: (R, C, P, Q).
        maps: Map of each box, (R,), int64; boxes of none of the maps are left out. None if each has
            its own.
        ys: Weights along y.
        xs: Weights along x.
        shape: Shape (B, C, H, W) of the result.
        last: Whether the result is to be channels last.
    """
    count, channels, height, width = shape
    boxes, rows, _ = ys.dense.shape
    columns = xs.dense.shape[1]
    device = values.device
    out = torch.empty(shape, dtype=values.dtype, device=device, memory_format=memory_format(last))
    if boxes:
        (top, bottom), (left, right) = ys.bounds(), xs.bounds()
    else:
        top = bottom = left = right = ys.range
    order = offsets = top
    if maps is not None:
        maps, order = maps.sort(stable=True)
        order = order.int()
        edges = torch.arange(count + 1, device=device)
        offsets = torch.searchsorted(maps, edges, out_int32=True)
    block, pixels = _block(channels, CHANNELS), _block(width, PIXELS)
    launch(
        separable_spread_kernel,
        (count * height * triton.cdiv(width, pixels), triton.cdiv(channels, block)),
        p_v=values,
        p_order=order,
        p_offsets=offsets,
        p_wy=ys.dense,
        p_wx=xs.dense,
        p_top=top,
        p_bottom=bottom,
        p_left=left,
        p_right=right,
        p_out=out,
        C=channels,
        H=height,
        W=width,
        P=rows,
        Q=columns,
        **_strides("v", "rcyx", values),
        **_strides("o", "mcyx", out),
        BC=block,
        BX=pixels,
        BP=triton.next_power_of_2(rows),
        BQ=_block(columns, BINS),
        maxnreg=255,
        OWN=maps is None,
        PRECISION=_precision(values.dtype),
    )
    return out


def _block(size: int, largest: int) -> int:
    return min(max(triton.next_power_of_2(size), 16), largest)


def _precision(dtype: torch.dtype) -> str:
    """How rows, which are sums in fp32, are multiplied: half precision needs no more than tf32."""
    if dtype == torch.float32 or torch.version.hip:
        return dot_precision(torch.float32)
    return "tf32"


def _strides(name: str, axes: str, x: torch.Tensor) -> dict[str, int]:
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, x.stride(), strict=True)}
