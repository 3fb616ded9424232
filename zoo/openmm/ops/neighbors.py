"""Operators over the neighborhoods of pixels: CARAFE, PSA's masks, convolution at chosen pixels."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from .numeric import vjp


def _reassemble(features: Tensor, masks: Tensor, kernel: int, groups: int, scale: int) -> Tensor:
    batch, channels, height, width = features.shape
    taps = F.unfold(features, kernel, padding=kernel // 2)
    taps = taps.view(batch, groups, channels // groups, kernel**2, height, width)
    masks = masks.reshape(batch, groups, kernel**2, height, scale, width, scale)
    output = torch.einsum("ngckhw,ngkhswt->ngchswt", taps, masks)
    return output.reshape(batch, channels, height * scale, width * scale)


def carafe_naive_forward(
    features: Tensor,
    masks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Upsamples by weighted sums of neighborhoods (CARAFE, Wang et al., 2019).

    Args:
        features: ``(B, C, H, W)``.
        masks: Weights, ``(B, group_size * kernel_size², H * scale_factor, W * scale_factor)``.
        output: Output, ``(B, C, H * scale_factor, W * scale_factor)``.
        kernel_size: Side of the neighborhoods, odd; zeros lie outside the map.
        group_size: Groups of channels with masks of their own.
        scale_factor: Upsampling ratio.
    """
    output.copy_(_reassemble(features, masks, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Derivatives of :func:`carafe_naive_forward` by features and masks."""
    by_features, by_masks = vjp(
        lambda x, m: _reassemble(x, m, kernel_size, group_size, scale_factor),
        (features, masks),
        grad_output,
    )
    grad_input.copy_(by_features)
    grad_masks.copy_(by_masks)


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As :func:`carafe_naive_forward`; keeps the features in ``rfeatures`` for the backward."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Derivatives of :func:`carafe_forward` by features and masks."""
    carafe_naive_backward(
        grad_output, rfeatures, masks, grad_input, grad_masks, kernel_size, group_size, scale_factor
    )


def _psa_places(
    collect: bool, size: tuple[int, int], mask: tuple[int, int], half: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Which entries of a mask fall on the map, and where they go in the flat output."""
    (height, width), (rows, columns) = size, mask
    i, j, h, w = torch.meshgrid(*map(torch.arange, (rows, columns, height, width)), indexing="ij")
    y, x = i + h - half[0], j + w - half[1]
    valid = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).flatten()
    here, there = h * width + w, y * width + x
    area = height * width
    place = there * area + here if collect else here * area + there
    return valid.nonzero()[:, 0], place.flatten()[valid]


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Turns each pixel's mask around itself into attention over the map (PSANet, 2018).

    Args:
        input: Masks, ``(num_, h_mask * w_mask, h_feature, w_feature)``.
        output: Output, ``(num_, h_feature * w_feature, h_feature, w_feature)``.
        psa_type: 0 to collect (channels are the pixels looked at), 1 to distribute.
        num_: Images.
        h_feature: Height of the map.
        w_feature: Width of the map.
        h_mask: Height of the masks.
        w_mask: Width of the masks.
        half_h_mask: Row of the masks that is the pixel's own.
        half_w_mask: Column of the masks that is the pixel's own.
    """
    source, place = _psa_places(
        psa_type == 0, (h_feature, w_feature), (h_mask, w_mask), (half_h_mask, half_w_mask)
    )
    output.view(num_, -1)[:, place] = input.flatten(1)[:, source]


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Derivative of :func:`psamask_forward` by the masks."""
    source, place = _psa_places(
        psa_type == 0, (h_feature, w_feature), (h_mask, w_mask), (half_h_mask, half_w_mask)
    )
    grad_input.view(num_, -1)[:, source] = grad_output.flatten(1)[:, place]


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Neighborhoods of chosen pixels, zeros outside the map.

    Args:
        im: ``(1, C, H, W)``.
        mask_h_idx: Rows of the pixels, ``(M,)``.
        mask_w_idx: Columns of the pixels, ``(M,)``.
        col: Output, ``(C * kernel_h * kernel_w, M)``.
        kernel_h: Height of the neighborhoods.
        kernel_w: Width of the neighborhoods.
        pad_h: How far the neighborhoods begin above the pixels.
        pad_w: How far the neighborhoods begin to the left of the pixels.
    """
    padded = F.pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = torch.arange(kernel_h, device=im.device)[:, None, None] + mask_h_idx
    columns = torch.arange(kernel_w, device=im.device)[None, :, None] + mask_w_idx
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Puts columns at chosen pixels.

    Args:
        col: ``(channels, M)``.
        mask_h_idx: Rows of the pixels, ``(M,)``.
        mask_w_idx: Columns of the pixels, ``(M,)``.
        im: Output, ``(1, channels, height, width)``; other pixels stay as they are.
        height: Height of the output.
        width: Width of the output.
        channels: Channels of the output.
    """
    im.view(channels, height, width)[:, mask_h_idx, mask_w_idx] = col
