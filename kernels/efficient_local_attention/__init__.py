"""Efficient local attention (ELA, arXiv 2403.01123, section 3)."""

import torch

from .._library import register_operator
from ..dispatch import Capability, choose, cpu_can_run
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
    convolution and norm that the released code shares between directions).

    Fused code is for inference; gradients are those of the definition.

    Args:
        x: Map, (B, C, H, W); channels-last, too.
        conv_weight: Convolution along the strips, without bias, (C, C / groups, k) with k odd.
        norm_weight: Weight of the group norm, (C,).
        norm_bias: Bias of the group norm, (C,).
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
    parameters = (conv_weight, norm_weight, norm_bias)
    tensors = (x, *parameters)
    differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)

    def cpu_can() -> Capability:
        if differentiable:
            return False, "it has no gradient yet: run it under torch.no_grad()"
        return cpu_can_run(*tensors)

    impl = choose("efficient_local_attention", impl, {"cpu": cpu_can})
    if impl == "reference":
        parameters = (p.to(x.dtype) for p in parameters)
        return reference.efficient_local_attention(x, *parameters, norm_groups, eps)
    return _operator(*tensors, norm_groups, eps)


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
    if conv.ndim != 3 or conv.shape[0] != channels or channels % conv.shape[1]:
        raise ValueError(
            f"conv_weight must be (C, C / groups, k) for {channels} channels; "
            f"got {tuple(conv.shape)}"
        )
    if conv.shape[2] % 2 == 0:
        raise ValueError(f"the convolution's kernel size must be odd; got {conv.shape[2]}")
    if weight.shape != (channels,) or bias.shape != (channels,):
        raise ValueError(
            f"norm_weight and norm_bias must be ({channels},); "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if groups < 1 or channels % groups:
        raise ValueError(f"norm_groups must divide the {channels} channels; got {groups}")


def _forward(x, conv, weight, bias, norm_groups, eps):
    from . import cpu

    # One set of parameters, for both directions.
    return cpu.forward(x, conv[None], weight[None], bias[None], norm_groups, eps, False)[0]


def _fake_forward(x, conv, weight, bias, norm_groups, eps):
    return torch.empty_like(x)


_operator = register_operator(
    "efficient_local_attention(Tensor x, Tensor conv, Tensor weight, Tensor bias, "
    "int norm_groups, float eps) -> Tensor",
    _forward,
    _fake_forward,
)
