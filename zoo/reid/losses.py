"""Losses of re-identification: those of pytorch-metric-learning, and centres."""

from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from ...heads.reid import CenterLoss as _CenterLoss
from ..signatures import accepted_arguments

__all__ = ["ArcFaceLoss", "BatchHardTripletLoss", "CenterLoss", "CircleLoss"]


class _Weighted(nn.Module):
    """A loss of pytorch-metric-learning, or of its kind, in full precision and with a weight."""

    def __init__(self, loss: nn.Module, loss_weight: float, miner: nn.Module | None = None):
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.loss_weight = loss_weight

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, of features (B, D) with identities (B,)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.miner is None:
                return self.loss_weight * self.loss(features, labels)
            return self.loss_weight * self.loss(features, labels, self.miner(features, labels))


@MODELS.register_module()
class BatchHardTripletLoss(_Weighted):
    """Triplets of each image with its farthest right and its nearest wrong one (arXiv 1703.07737).

    Args:
        margin: Margin between the two distances; None for the soft one, log(1 + exp(d_ap - d_an)).
        normalize: Whether distances are of normalised features.
        loss_weight: Factor.
    """

    def __init__(
        self,
        margin: float | None = None,
        normalize: bool = False,
        loss_weight: float = 1.0,
    ):
        from pytorch_metric_learning import distances, losses, miners, reducers

        distance = distances.LpDistance(normalize_embeddings=normalize)
        loss = losses.TripletMarginLoss(
            margin=margin or 0.0,
            smooth_loss=margin is None,
            distance=distance,
            reducer=reducers.MeanReducer(),
        )
        super().__init__(loss, loss_weight, miners.BatchHardMiner(distance=distance))


@MODELS.register_module()
class CircleLoss(_Weighted):
    """Circle loss (Sun et al., CVPR 2020) of the pairs in a batch.

    Args:
        m: Relaxation.
        gamma: Scale.
        loss_weight: Factor.
    """

    def __init__(self, m: float = 0.25, gamma: float = 128, loss_weight: float = 1.0):
        from pytorch_metric_learning import losses

        super().__init__(losses.CircleLoss(m=m, gamma=gamma), loss_weight)


@MODELS.register_module()
class CenterLoss(_Weighted):
    """Distance to learnt centres; see ``visattn.heads.reid.CenterLoss``.

    Args:
        num_classes: Identities to train.
        num_features: Width of the features.
        loss_weight: Factor.
    """

    def __init__(self, num_classes: int, num_features: int, loss_weight: float = 5e-4):
        super().__init__(_CenterLoss(num_classes, num_features), loss_weight)


@MODELS.register_module()
class ArcFaceLoss(_Weighted):
    """ArcFace (Deng et al., CVPR 2019), in place of the classifier and its cross entropy.

    Args:
        num_classes: Identities to train.
        num_features: Width of the features.
        margin: Margin in degrees.
        scale: Scale of the cosines.
        loss_weight: Factor.
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        margin: float = 28.6,
        scale: float = 64,
        loss_weight: float = 1.0,
    ):
        from pytorch_metric_learning import losses

        loss = losses.ArcFaceLoss(num_classes, num_features, margin=margin, scale=scale)
        super().__init__(loss, loss_weight)
        self.embedding_size = num_features


def build_loss(cfg: dict[str, Any], num_classes: int, num_features: int) -> nn.Module:
    """A loss by configuration, told the sizes if it takes them."""
    sizes = {"num_classes": num_classes, "num_features": num_features}
    # mmdet has losses of such names, which its scope would find first.
    with MODELS.switch_scope_and_registry("mmengine") as registry:
        accepted = accepted_arguments(registry.get(cfg["type"])) or frozenset()
        return registry.build({**{k: v for k, v in sizes.items() if k in accepted}, **cfg})
