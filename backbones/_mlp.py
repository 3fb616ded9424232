"""timm's MLP, computed on a CPU over blocks of tokens whose hidden features stay in the cache.

At the high resolutions of pyramids the hidden features of all tokens are tens of megabytes, which
plain operators write and read five times around one product's worth of work, in memory that is
asked of the system anew each time.
"""

from collections.abc import Iterator
from typing import Any

import timm.layers
import torch
from torch import nn

from ..kernels._memory import empty

HIDDEN_PER_THREAD = 2**18
"""Hidden features that a thread works on at a time: a megabyte in single precision."""

RECOMPUTE_FROM = 2**23
"""Hidden features from which it is faster to compute them again than to keep them for a gradient:
32 MiB, from where on the C library returns memory to the system as soon as it is free."""


class Mlp(timm.layers.Mlp):
    """MLP of timm with the same parameters, which needs less time and memory on a CPU.

    Without gradients the hidden features of a block of tokens exist at a time. With gradients it is
    the same from `RECOMPUTE_FROM` hidden features on: the backward pass computes them again.
    Whatever is not a plain pair of linear layers around an exact GELU, runs as timm runs it:
    dropout that is on, replaced or hooked layers, autocast, compilation, export, other devices.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._takes(x):
            return super().forward(x)
        parameters = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        if torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (x, *parameters)
        ):
            if x.shape[:-1].numel() * self.fc1.out_features < RECOMPUTE_FROM:
                return super().forward(x)
            return _Recomputed.apply(x, *parameters)
        return _forward(x, *parameters)

    def _takes(self, x: torch.Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return False
        if self.training and (self.drop1.p or self.drop2.p):
            return False
        if not (
            type(self.fc1) is type(self.fc2) is nn.Linear and isinstance(self.norm, nn.Identity)
        ):
            return False
        if x.dtype != torch.float32 or self.fc1.weight.dtype != torch.float32:
            return False
        exact = type(self.act) in (nn.GELU, timm.layers.GELU)
        if not exact or getattr(self.act, "approximate", "none") != "none":
            return False
        return not any(_is_watched(layer) for layer in (self.fc1, self.act, self.fc2))


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody wants to see, or changed, what a layer does when it is called."""
    return "forward" in vars(layer) or bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )


class _Recomputed(torch.autograd.Function):
    """The MLP, whose backward pass computes hidden features again; deterministic."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, *parameters[:3])
        return _forward(x, *parameters)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads = _backward(grad, *ctx.saved_tensors, ctx.needs_input_grad[:4])
        grad_bias2 = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[4] else None
        return *grads, grad_bias2


def _forward(
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
) -> torch.Tensor:
    tokens = x.reshape(-1, x.shape[-1])
    out = empty(len(tokens), weight2.shape[0])
    for block, hidden, _ in _blocks(tokens, weight1.shape[0], buffers=1):
        _linear(tokens[block], weight1, bias1, hidden)
        torch.ops.aten.gelu_(hidden)
        _linear(hidden, weight2, bias2, out[block])
    return out.view(*x.shape[:-1], out.shape[1])


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    needs: tuple[bool, ...],
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of ``x``, of the first weight and bias and of the second weight, where needed."""
    tokens, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    need_x, need_weight1, need_bias1, need_weight2 = needs
    grad_x = empty(*tokens.shape) if need_x else None
    grad_weight1 = torch.zeros_like(weight1) if need_weight1 else None
    grad_bias1 = torch.zeros_like(bias1) if need_bias1 else None
    grad_weight2 = torch.zeros_like(weight2) if need_weight2 else None
    for block, hidden, other in _blocks(tokens, weight1.shape[0], buffers=2):
        _linear(tokens[block], weight1, bias1, hidden)
        if need_weight2:
            torch.ops.aten.gelu.out(hidden, out=other)
            grad_weight2.addmm_(grad[block].t(), other)
        if not any(needs[:3]):
            continue
        torch.mm(grad[block], weight2, out=other)
        torch.ops.aten.gelu_backward.grad_input(other, hidden, grad_input=other)
        if need_weight1:
            grad_weight1.addmm_(other.t(), tokens[block])
        if need_bias1:
            grad_bias1 += other.sum(0)
        if need_x:
            torch.mm(other, weight1, out=grad_x[block])
    return grad_x if grad_x is None else grad_x.view_as(x), grad_weight1, grad_bias1, grad_weight2


def _blocks(
    tokens: torch.Tensor, width: int, buffers: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Slices of tokens, with memory for the hidden features of one, and for as many others."""
    count = len(tokens)
    size = max(HIDDEN_PER_THREAD * torch.get_num_threads() // width, 256)
    if count < 2 * size:
        size = max(count, 1)
    memory = tokens.new_empty(buffers, min(size, count), width)
    for start in range(0, count, size):
        block = slice(start, min(start + size, count))
        yield block, memory[0, : block.stop - start], memory[-1, : block.stop - start]


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)
