"""Efficient local attention (ELA, arXiv 2403.01123, section 3)."""

from typing import Any

import torch

from .._library import register_operator
from ..dispatch import choose, cpu_can_run, triton_can_run
from . import reference

__all__ = ["efficient_local_attention"]


def efficient_local_attention(
    x: torch.Tensor,
    conv_weight: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    norm_groups: int,
    eps: float = 1e-5,
    impl: str | None = None,
) -> torch.Tensor:
    """Gates a map by what its rows and its columns hold.

    Means over the columns, (B, C, H), and over the rows, (B, C, W), each pass the same convolution,
    group norm and sigmoid; the map is multiplied by both gates (ELA, equations 5 to 7, with the
    convolution and norm that the released code shares between directions). Parameters with one
    more dimension, of 2, are those for H and those for W instead.

    Gates are computed in float32, whatever the dtypes and under autocast too. The backward pass is
    deterministic.

    Args:
        x: Map, (B, C, H, W); channels-last, too.
        conv_weight: Convolution along the strips, without bias, (C, C / groups, k) with k odd, or
            (2, C, C / groups, k).
        norm_weight: Weight of the group norm, (C,) or (2, C).
        norm_bias: Bias of the group norm, (C,) or (2, C).
        norm_groups: Groups of the group norm, a divisor of C.
        eps: Added to variances.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        (B, C, H, W), in the dtype and memory format of ``x``.

    Raises:
        ValueError: If a shape or ``norm_groups`` is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    _check(x, conv_weight, norm_weight, norm_bias, norm_groups)
    parameters = conv_weight, norm_weight, norm_bias
    if conv_weight.ndim == 3:
        parameters = tuple(p.unsqueeze(0) for p in parameters)
    tensors = x, *parameters
    impl = choose(
        "efficient_local_attention",
        impl,
        {"triton": lambda: triton_can_run(*tensors), "cpu": lambda: cpu_can_run(*tensors)},
    )
    if impl == "reference":
        return reference.efficient_local_attention(*tensors, norm_groups, eps)
    # What the gradient needs is kept only where there will be one.
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _operator(*tensors, norm_groups, eps, save, impl)[0]


def _check(
    x: torch.Tensor,
    conv: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
) -> None:
    if x.ndim != 4:
        raise ValueError(f"x must be (B, C, H, W); got {tuple(x.shape)}")
    channels = x.shape[1]
    sets = conv.shape[:-3]
    if conv.ndim not in (3, 4) or sets not in ((), (2,)) or conv.shape[-3] != channels:
        raise ValueError(
            f"conv_weight must be (C, C / groups, k), or (2, C, C / groups, k), for {channels} "
            f"channels; got {tuple(conv.shape)}"
        )
    if conv.shape[-2] == 0 or channels % conv.shape[-2]:
        raise ValueError(
            f"conv_weight's {conv.shape[-2]} channels a group must divide the {channels} of x"
        )
    if conv.shape[-1] % 2 == 0:
        raise ValueError(f"the convolution's kernel size must be odd; got {conv.shape[-1]}")
    for name, parameter in (("norm_weight", weight), ("norm_bias", bias)):
        if parameter.shape != (*sets, channels):
            raise ValueError(
                f"{name} must be {(*sets, channels)}, as conv_weight is {tuple(conv.shape)}; "
                f"got {tuple(parameter.shape)}"
            )
    if groups < 1 or channels % groups:
        raise ValueError(f"norm_groups must divide the {channels} channels; got {groups}")


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _forward(x, conv, weight, bias, norm_groups, eps, save, impl):
    if x.numel() == 0:
        return _fake_forward(x, conv, weight, bias, norm_groups, eps, save, impl)
    return _implementation(impl).forward(x, conv, weight, bias, norm_groups, eps, save)


def _fake_forward(x, conv, weight, bias, norm_groups, eps, save, impl):
    batch, channels, height, width = x.shape
    shape = (batch, height + width, channels) if save else 0
    return torch.empty_like(x), x.new_empty(shape, dtype=torch.float32)


def _backward(grad, x, conv, weight, bias, strips, norm_groups, eps, impl):
    if x.numel() == 0:
        return torch.empty_like(x), *map(torch.zeros_like, (conv, weight, bias))
    return _implementation(impl).backward(grad, x, conv, weight, bias, strips, norm_groups, eps)


def _fake_backward(grad, x, conv, weight, bias, strips, norm_groups, eps, impl):
    return torch.empty_like(x), *(p.new_empty(p.shape) for p in (conv, weight, bias))


def _setup_context(ctx, inputs, output):
    x, conv, weight, bias, *ctx.options, ctx.save, ctx.impl = inputs
    ctx.save_for_backward(x, conv, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, _):
    if grad is None:
        return (None,) * 8
    if not ctx.save:
        raise RuntimeError(
            "efficient_local_attention was called without save, and kept nothing to go back"
        )
    grads = _backward_operator(grad, *ctx.saved_tensors, *ctx.options, ctx.impl)
    return *grads, None, None, None, None


_backward_operator = register_operator(
    "efficient_local_attention_backward(Tensor grad, Tensor x, Tensor conv, Tensor weight, "
    "Tensor bias, Tensor strips, int norm_groups, float eps, str impl) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_operator = register_operator(
    "efficient_local_attention(Tensor x, Tensor conv, Tensor weight, Tensor bias, "
    "int norm_groups, float eps, bool save, str impl) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
