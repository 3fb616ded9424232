"""Focal losses (Lin et al., 2017) and their gradients."""

import torch
from torch import Tensor

from .numeric import float32

_TINY = torch.finfo(torch.float32).tiny


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=_TINY).log()


def _one_hot(target: Tensor, classes: int) -> Tensor:
    return target[:, None] == torch.arange(classes, device=target.device)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Binary focal loss of every class.

    Args:
        input: Logits, ``(N, C)``.
        target: Classes, ``(N,)``; those outside ``[0, C)`` are background.
        weight: Weights of the target classes, ``(C,)``, or empty.
        output: Output, ``(N, C)``.
        gamma: Exponent of the focusing factor.
        alpha: Weight of positives; negatives have ``1 - alpha``.
    """
    gamma, alpha = float32(gamma), float32(alpha)
    p = input.sigmoid()
    positive = alpha * (1 - p) ** gamma * _log(p)
    negative = (1 - alpha) * p**gamma * _log(1 - p)
    output.copy_(-torch.where(_one_hot(target, input.shape[1]), positive, negative))
    if weight.numel():
        output.mul_(weight[target][:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of :func:`sigmoid_focal_loss_forward` by the logits, ``grad_input`` ``(N, C)``."""
    gamma, alpha = float32(gamma), float32(alpha)
    p = input.sigmoid()
    positive = alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p))
    negative = (1 - alpha) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p)
    grad_input.copy_(-torch.where(_one_hot(target, input.shape[1]), positive, negative))
    if weight.numel():
        grad_input.mul_(weight[target][:, None])


def _target_probability(softmax: Tensor, target: Tensor) -> Tensor:
    return softmax.gather(1, target.clamp(min=0)[:, None])[:, 0]


def _weigh(values: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    if weight.numel():
        values = values * weight[target.clamp(min=0)]
    return values.masked_fill(target < 0, 0)


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of the target class.

    Args:
        input: Probabilities, ``(N, C)``.
        target: Classes, ``(N,)``; negative ones are ignored.
        weight: Weights of the classes, ``(C,)``, or empty.
        output: Output, ``(N,)``.
        gamma: Exponent of the focusing factor.
        alpha: Weight of the loss.
    """
    gamma, alpha = float32(gamma), float32(alpha)
    p = _target_probability(input, target)
    output.copy_(_weigh(-alpha * (1 - p) ** gamma * _log(p), target, weight))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of :func:`softmax_focal_loss_forward` by the logits.

    Args:
        input: Probabilities, ``(N, C)``.
        target: Classes, ``(N,)``; negative ones are ignored.
        weight: Weights of the classes, ``(C,)``, or empty.
        buff: Output, ``(N,)``: the derivative by the log-probability of the target.
        grad_input: Output, ``(N, C)``.
        gamma: Exponent of the focusing factor.
        alpha: Weight of the loss.
    """
    gamma, alpha = float32(gamma), float32(alpha)
    p = _target_probability(input, target)
    slope = gamma * (1 - p) ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma
    buff.copy_(_weigh(alpha * slope, target, weight))
    grad_input.copy_(buff[:, None] * (_one_hot(target, input.shape[1]).to(input) - input))
