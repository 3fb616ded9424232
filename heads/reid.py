"""Heads of re-identification: a bottleneck of batch norm, a classifier without bias, centres.

The head is that of "Bag of Tricks and a Strong Baseline for Deep Person Re-identification"
(arXiv 1903.07071), as TransReID (arXiv 2102.04378) and DCAL (arXiv 2205.02151) have it.
"""

from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["BNNeck", "CenterLoss", "ReIDHead"]


class BNNeck(nn.BatchNorm1d):
    """Batch norm of features (B, D) whose bias stays zero: classes are told by angle around it."""

    def __init__(self, num_features: int):
        super().__init__(num_features)
        self.bias.requires_grad_(False)


class ReIDHead(nn.Module):
    """Losses of one branch's features: of identity behind a ``BNNeck``, of distance before it.

    Args:
        num_features: Width D of the features.
        num_classes: Identities to train.
        id_loss: Loss of logits (B, classes) and identities (B,); one with ``embedding_size`` has a
            classifier of its own and takes the features behind the neck.
        metric_losses: Losses of the features before the neck (B, D) and identities, by name.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        id_loss: nn.Module,
        metric_losses: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__()
        self.bnneck = BNNeck(num_features)
        self.id_loss = id_loss
        self.metric_losses = nn.ModuleDict(metric_losses or {})
        if hasattr(id_loss, "embedding_size"):
            self.classifier = None
        else:
            self.classifier = nn.Linear(num_features, num_classes, bias=False)
            nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features behind the neck, (B, D)."""
        return self.bnneck(features)

    def losses(self, features: torch.Tensor, identities: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each loss, a scalar, by name; the first is ``"id"``.

        Args:
            features: Features (B, D).
            identities: Identities (B,), counted from 0.
        """
        output = self(features)
        if self.classifier is not None:
            output = self.classifier(output)
        found = {"id": self.id_loss(output, identities)}
        for name, loss in self.metric_losses.items():
            found[name] = loss(features, identities)
        return found


class CenterLoss(nn.Module):
    """Mean squared distance of features to learnt centres of their classes (Wen et al., ECCV 2016).

    Args:
        num_classes: Number of classes.
        num_features: Width D of the features.
    """

    def __init__(self, num_classes: int, num_features: int):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, num_features))

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of features (B, D) with classes (B,)."""
        return (features.float() - self.centers[labels]).square().sum(1).mean()
