"""timm's MLP, computed on a CPU over blocks of tokens whose hidden features stay in the cache.

At the high resolutions of pyramids the hidden features of all tokens are tens of megabytes, which
plain operators write and read five times around one product's worth of work, in memory that is
asked of the system anew each time. Here bias, GELU and its gradient are one pass over a block.
"""

from collections.abc import Iterator
from typing import Any

import timm.layers
import torch
from torch import nn

from ..kernels._memory import empty
from ..kernels.dispatch import cpu_can_run, default_impl, is_transformed

HIDDEN_PER_THREAD = 2**18
"""Hidden features that a thread works on at a time: a megabyte in single precision."""

RECOMPUTE_FROM = 2**23
"""Hidden features from which they are computed again for a gradient, and not kept: 32 MiB."""

HIDDEN_MULTIPLE = 16
"""What the number of hidden features must be a multiple of."""


class Mlp(timm.layers.Mlp):
    """MLP of timm with the same parameters, which needs less time and memory on a CPU.

    Without gradients the hidden features of a block of tokens exist at a time. With gradients it is
    the same from `RECOMPUTE_FROM` hidden features on: the backward pass computes them again; fewer
    are kept, once. Whatever is not a plain pair of linear layers around an exact GELU, runs as timm
    runs it: dropout that is on, replaced or hooked layers, autocast, compilation, export, other
    devices, ``torch.func``; so does all where `visattn.kernels` is told to run its definitions.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._takes(x):
            return super().forward(x)
        parameters = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        if torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (x, *parameters)
        ):
            return _Fused.apply(x, *parameters)
        return _forward(x, *parameters)

    def _takes(self, x: torch.Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed():
            return False
        if default_impl() == "reference":
            return False
        if not cpu_can_run(x)[0] or torch.is_autocast_enabled("cpu"):
            return False
        if self.training and (self.drop1.p or self.drop2.p):
            return False
        if not (
            type(self.fc1) is type(self.fc2) is nn.Linear and isinstance(self.norm, nn.Identity)
        ):
            return False
        if x.dtype != torch.float32 or self.fc1.weight.dtype != torch.float32:
            return False
        if self.fc1.out_features % HIDDEN_MULTIPLE:
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


class _Fused(torch.autograd.Function):
    """The MLP, whose backward pass may compute hidden features again; deterministic."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
        width = len(parameters[0])
        count = x.shape[:-1].numel()
        hidden = empty(count, width) if count * width < RECOMPUTE_FROM else None
        ctx.save_for_backward(x, *parameters[:3], hidden)
        return _forward(x, *parameters, hidden)

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
    kept: torch.Tensor | None = None,
) -> torch.Tensor:
    """The MLP; leaves hidden features without their bias in ``kept`` where it is given."""
    from ..kernels._gelu import bias_gelu

    tokens = x.reshape(-1, x.shape[-1])
    out = empty(len(tokens), len(weight2))
    bias1 = _bias(bias1, weight1)
    for block, features in _blocks(tokens, len(weight1)):
        hidden = features if kept is None else kept[block]
        torch.mm(tokens[block], weight1.t(), out=hidden)
        bias_gelu(hidden, bias1, features)
        if bias2 is None:
            torch.mm(features, weight2.t(), out=out[block])
        else:
            torch.addmm(bias2, features, weight2.t(), out=out[block])
    return out.view(*x.shape[:-1], out.shape[1])


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    weight2: torch.Tensor,
    kept: torch.Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of ``x``, of the first weight and bias and of the second weight, where needed."""
    from ..kernels._gelu import bias_gelu_gradient

    tokens, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    need_x, need_weight1, need_bias1, need_weight2 = needs
    grad_x = empty(*tokens.shape) if need_x else None
    grad_weight1 = torch.zeros_like(weight1) if need_weight1 else None
    grad_bias1 = torch.zeros_like(bias1) if need_bias1 else None
    grad_weight2 = torch.zeros_like(weight2) if need_weight2 else None
    bias1 = _bias(bias1, weight1)
    for block, features, slopes in _blocks(tokens, len(weight1), buffers=2):
        hidden = features if kept is None else kept[block]
        if kept is None:
            torch.mm(tokens[block], weight1.t(), out=hidden)
        torch.mm(grad[block], weight2, out=slopes)
        sums = bias_gelu_gradient(hidden, bias1, slopes, features)
        if need_weight2:
            grad_weight2.addmm_(grad[block].t(), features)
        if need_weight1:
            grad_weight1.addmm_(slopes.t(), tokens[block])
        if need_bias1:
            grad_bias1 += sums
        if need_x:
            torch.mm(slopes, weight1, out=grad_x[block])
    return grad_x if grad_x is None else grad_x.view_as(x), grad_weight1, grad_bias1, grad_weight2


def _bias(bias: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias.contiguous()


def _blocks(
    tokens: torch.Tensor, width: int, buffers: int = 1
) -> Iterator[tuple[slice | torch.Tensor, ...]]:
    """Slices of tokens, each with memory for its hidden features, ``buffers`` times."""
    count = len(tokens)
    size = max(HIDDEN_PER_THREAD * torch.get_num_threads() // width, 256)
    if count < 2 * size:
        size = max(count, 1)
    memory = empty(buffers, min(size, count), width)
    for start in range(0, count, size):
        block = slice(start, min(start + size, count))
        yield block, *memory[:, : block.stop - start]
