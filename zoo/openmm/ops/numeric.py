"""What several operators need of numbers and gradients."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def float32(value: float) -> float:
    """Rounds as the extension does, whose scalar arguments are single precision."""
    return float(np.float32(value))


def vjp(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of ``function(*inputs)`` with respect to every input, given that of its output.

    Args:
        function: A differentiable function of tensors.
        inputs: Its arguments.
        grad_output: The gradient of its output, of the output's shape.

    Returns:
        One gradient per input, of the input's shape.
    """
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_output)
