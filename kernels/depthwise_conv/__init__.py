"""Depthwise convolution of channels-last maps: the local term beside attention (LePE)."""

import torch

from .._library import register_operator
from ..dispatch import Capability, cast_for_autocast, choose, cpu_can_run
from . import reference

__all__ = ["depthwise_conv"]

FEWEST_CHANNELS = 16
"""Fewest channels that fused code takes: a vector of them."""


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    impl: str | None = None,
) -> torch.Tensor:
    """Convolves each channel of a map with a kernel of its own, and adds to another map.

    The local enhancement of values beside attention (BiFormer, arXiv 2303.08810, equation 6; Agent
    Attention, arXiv 2312.08874, equation 6), which is zero-padded to keep the size. Values are read
    where they are, as a slice of what a projection gives, and what attention gives is added in the
    same pass.

    The backward pass is deterministic.

    Args:
        x: Maps, (B, H, W, C).
        weight: Kernels, (C, 1, h, w) with h and w odd, as of ``nn.Conv2d(..., groups=C)``.
        bias: Added to each channel, (C,).
        residual: Added to the result, (B, H, W, C).
        impl: Implementation; see ``visattn.kernels.dispatch``. On GPUs it is torch's convolution.

    Returns:
        (B, H, W, C), in the dtype of ``x``.

    Raises:
        ValueError: If a shape is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    _check(x, weight, bias, residual)
    tensors = cast_for_autocast(x, weight, bias, residual)
    impl = choose("depthwise_conv", impl, {"cpu": lambda: _cpu_can_convolve(*tensors)})
    if impl == "reference":
        return reference.depthwise_conv(*tensors)
    return _operator(*tensors)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must be (B, H, W, C); got {tuple(x.shape)}")
    channels = x.shape[3]
    if weight.ndim != 4 or weight.shape[:2] != (channels, 1):
        raise ValueError(
            f"weight must be (C, 1, h, w) with C = {channels} of x; got {tuple(weight.shape)}"
        )
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"weight must have odd sides; got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must be ({channels},); got {tuple(bias.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual must be {tuple(x.shape)} as x is; got {tuple(residual.shape)}")


def _cpu_can_convolve(x: torch.Tensor, *others: torch.Tensor | None) -> Capability:
    ok, reason = cpu_can_run(x, *others)
    if not ok:
        return ok, reason
    if x.shape[3] < FEWEST_CHANNELS:
        return False, f"it takes at least {FEWEST_CHANNELS} channels; got {x.shape[3]}"
    return True, ""


def _forward(x, weight, bias, residual):
    from . import cpu

    return cpu.forward(x, weight, bias, residual)


def _fake_forward(x, weight, bias, residual):
    return x.new_empty(x.shape)


def _backward(grad, x, weight, needs):
    from . import cpu

    return cpu.backward(grad, x, weight, needs)


def _fake_backward(grad, x, weight, needs):
    need_x, need_weight = needs
    return (
        x.new_empty(x.shape if need_x else 0),
        weight.new_empty(weight.shape if need_weight else 0),
        weight.new_empty(len(weight) if need_weight else 0),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx, grad):
    need_x, need_weight, need_bias, need_residual = ctx.needs_input_grad
    needs = [need_x, need_weight or need_bias]
    dx, dweight, dbias = _backward_operator(grad, *ctx.saved_tensors, needs)
    return (
        dx if need_x else None,
        dweight if need_weight else None,
        dbias if need_bias else None,
        grad if need_residual else None,
    )


_backward_operator = register_operator(
    "depthwise_conv_backward(Tensor grad, Tensor x, Tensor weight, bool[2] needs) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_operator = register_operator(
    "depthwise_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
