"""Losses of Dual Cross-Attention Learning (DCAL, arXiv 2205.02151, section 3.4)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["DualCrossAttentionLoss", "combine_losses"]

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def combine_losses(losses: Sequence[torch.Tensor | None], weights: torch.Tensor) -> torch.Tensor:
    """Weighs losses by what they leave uncertain: half the sum of exp(-w) L + w (DCAL, equation 5).

    It may be negative.

    Args:
        losses: Loss of each branch, a scalar; None for a branch that is not used, whose weight then
            has no part in the sum.
        weights: Learnable weights w, one a branch.

    Returns:
        A scalar.

    Raises:
        ValueError: If there are not as many weights as losses, or no loss is given.
    """
    if len(losses) != len(weights):
        raise ValueError(f"{len(losses)} losses need as many weights; got {len(weights)}")
    terms = [
        torch.exp(-w) * loss + w
        for loss, w in zip(losses, weights, strict=True)
        if loss is not None
    ]
    if not terms:
        raise ValueError("there is no loss to combine: all branches are None")
    return sum(terms) / 2


class DualCrossAttentionLoss(nn.Module):
    """The combined loss of the branches of a DCAL network.

    Args:
        criterion: Loss of (logits, targets) of one branch; by default cross entropy, of class
            indices or of soft targets.
        label_smoothing: Label smoothing of the cross entropy.
    """

    def __init__(self, criterion: Criterion | None = None, label_smoothing: float = 0.0):
        super().__init__()
        if criterion is not None and label_smoothing:
            raise ValueError("label_smoothing is of the cross entropy: give it to the criterion")
        self.criterion = criterion
        self.label_smoothing = label_smoothing

    def branch_loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of one branch's logits (B, classes)."""
        if self.criterion is not None:
            return self.criterion(logits, target)
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)

    def forward(
        self, outputs: Sequence[torch.Tensor | None] | torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            outputs: What the network gives in training: logits of each branch, None for those not
                used, and last the weights of the losses. Fused logits, of eval mode, get the loss
                of one branch.
            target: Class indices (B,), or probabilities (B, classes).
        """
        if isinstance(outputs, torch.Tensor):
            return self.branch_loss(outputs, target)
        *logits, weights = outputs
        losses = [None if x is None else self.branch_loss(x, target) for x in logits]
        return combine_losses(losses, weights)
