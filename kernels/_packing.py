"""Queries, keys and values of one projection."""

from typing import Any

import torch

from ._memory import empty
from .dispatch import is_transformed

__all__ = ["unpack"]


def unpack(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    """``x.unbind(dim)``, of which the gradient on the CPU is put together in memory that is reused.

    What a projection gives for queries, keys and values is the largest tensor of most attention
    layers, and so is its gradient.

    Args:
        x: Packed tensor, such as (B, N, 3, C).
        dim: Dimension of the parts.

    Returns:
        Views of the parts.
    """
    plain = type(x) is torch.Tensor and x.device.type == "cpu" and not torch.jit.is_tracing()
    if not (plain and x.requires_grad and torch.is_grad_enabled()):
        return x.unbind(dim)
    if torch.compiler.is_compiling() or is_transformed():
        return x.unbind(dim)
    return _Unpack.apply(x, dim)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        ctx.dim, ctx.shape = dim, x.shape
        ctx.set_materialize_grads(False)
        return x.unbind(dim)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, None
        packed = empty(*ctx.shape, dtype=given[0].dtype)
        for i, grad in enumerate(grads):
            part = packed.select(ctx.dim, i)
            part.zero_() if grad is None else part.copy_(grad)
        return packed, None
