"""Deformable convolutions and deformable attention, over torchvision and mmcv's own torch code."""

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from .numeric import vjp


def _check(input: Tensor, weight: Tensor, group: int, deformable_group: int) -> None:
    channels = input.shape[1]
    if channels != weight.shape[1] * group:
        raise RuntimeError(
            f"invalid number of input planes, expected: {weight.shape[1] * group}, "
            f"but got: {channels}"
        )
    if channels % deformable_group:
        raise RuntimeError(
            f"input channels ({channels}) must be divisible by deform_groups ({deformable_group})"
        )


def _off_the_map(
    offset: Tensor,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Offsets whose samples lie a pixel or more outside, where mmcv's derivative is 0.

    torchvision has a one-sided derivative at just one pixel, where zero offsets often put samples.
    """
    batch, _, rows, columns = offset.shape
    moved = offset.reshape(batch, -1, *kernel, 2, rows, columns)
    outside = []
    for axis, out in ((0, rows), (1, columns)):
        taps = torch.arange(kernel[axis], device=offset.device) * dilation[axis] - padding[axis]
        starts = torch.arange(out, device=offset.device) * stride[axis]
        grid = taps[:, None] + starts
        grid = grid[:, None, :, None] if axis == 0 else grid[None, :, None, :]
        at = grid + moved[:, :, :, :, axis]
        outside.append((at <= -1) | (at >= size[axis]))
    off = outside[0] | outside[1]
    return off[:, :, :, :, None].expand_as(moved).reshape(offset.shape)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,  # noqa: N803
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (Dai et al., 2017).

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(O, C / group, kH, kW)``.
        offset: Displacements ``(dy, dx)`` in pixels, ``(B, 2 * groups * kH * kW, Ho, Wo)``.
        output: Output, ``(B, O, Ho, Wo)``.
        columns: Not needed.
        ones: Not needed.
        kW: Width of the kernel.
        kH: Height of the kernel.
        dW: Horizontal stride.
        dH: Vertical stride.
        padW: Horizontal padding.
        padH: Vertical padding.
        dilationW: Horizontal dilation.
        dilationH: Vertical dilation.
        group: Groups of the convolution.
        deformable_group: Groups of channels with offsets of their own.
        im2col_step: Not needed.
    """
    _check(input, weight, group, deformable_group)
    conv = {"stride": (dH, dW), "padding": (padH, padW), "dilation": (dilationH, dilationW)}
    output.copy_(deform_conv2d(input, offset, weight, **conv))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,  # noqa: N803
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Derivatives of :func:`deform_conv_forward` by input (added up) and offsets."""
    _check(input, weight, group, deformable_group)
    conv = {"stride": (dH, dW), "padding": (padH, padW), "dilation": (dilationH, dilationW)}
    by_input, by_offset = vjp(
        lambda x, o: deform_conv2d(x, o, weight, **conv), (input, offset), grad_output
    )
    grad_input.add_(by_input)
    off = _off_the_map(offset, input.shape[2:], weight.shape[2:], **conv)
    grad_offset.copy_(by_offset.masked_fill(off, 0))


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,  # noqa: N803
    kH: int,  # noqa: N803
    dW: int,  # noqa: N803
    dH: int,  # noqa: N803
    padW: int,  # noqa: N803
    padH: int,  # noqa: N803
    dilationW: int,  # noqa: N803
    dilationH: int,  # noqa: N803
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Derivative of :func:`deform_conv_forward` by the weight, times ``scale`` (added up)."""
    weight = torch.zeros_like(grad_weight)
    _check(input, weight, group, deformable_group)
    conv = {"stride": (dH, dW), "padding": (padH, padW), "dilation": (dilationH, dilationW)}
    (by_weight,) = vjp(lambda w: deform_conv2d(input, offset, w, **conv), (weight,), grad_output)
    grad_weight.add_(by_weight, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution (Zhu et al., 2019).

    As :func:`deform_conv_forward`, with ``bias`` ``(O,)`` (used if ``with_bias``) and ``mask``
    ``(B, groups * kH * kW, Ho, Wo)``, which scales the samples.
    """
    _check(input, weight, group, deformable_group)
    conv = {
        "stride": (stride_h, stride_w),
        "padding": (pad_h, pad_w),
        "dilation": (dilation_h, dilation_w),
    }
    bias = bias if with_bias else None
    output.copy_(deform_conv2d(input, offset, weight, bias, mask=mask, **conv))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Derivatives of :func:`modulated_deform_conv_forward`; weight, bias and input add up."""
    _check(input, weight, group, deformable_group)
    conv = {
        "stride": (stride_h, stride_w),
        "padding": (pad_h, pad_w),
        "dilation": (dilation_h, dilation_w),
    }
    by_input, by_offset, by_mask, by_weight = vjp(
        lambda x, o, m, w: deform_conv2d(x, o, w, mask=m, **conv),
        (input, offset, mask, weight),
        grad_output,
    )
    grad_input.add_(by_input)
    grad_weight.add_(by_weight)
    off = _off_the_map(offset, input.shape[2:], weight.shape[2:], **conv)
    grad_offset.copy_(by_offset.masked_fill(off, 0))
    grad_mask.copy_(by_mask)
    if with_bias:
        grad_bias.add_(grad_output.sum((0, 2, 3)))


def _deform_attn(value: Tensor, shapes: Tensor, loc: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, loc, weights)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (Zhu et al., 2021).

    Args:
        value: The levels' maps one after the other, ``(B, keys, heads, dim)``.
        spatial_shapes: Heights and widths of the levels, ``(levels, 2)``.
        level_start_index: Not needed: it follows from the shapes.
        sampling_loc: ``(x, y)`` in units of the map, ``(B, queries, heads, levels, points, 2)``.
        attn_weight: ``(B, queries, heads, levels, points)``.
        im2col_step: Not needed.

    Returns:
        ``(B, queries, heads * dim)``.
    """
    return _deform_attn(value, spatial_shapes, sampling_loc, attn_weight)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Derivatives of :func:`ms_deform_attn_forward` by values, locations and weights."""
    by_value, by_loc, by_weight = vjp(
        lambda v, loc, w: _deform_attn(v, spatial_shapes, loc, w),
        (value, sampling_loc, attn_weight),
        grad_output,
    )
    grad_value.copy_(by_value)
    grad_sampling_loc.copy_(by_loc)
    grad_attn_weight.copy_(by_weight)
