"""Heads of re-identification."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visattn.heads.reid import BNNeck, CenterLoss, ReIDHead

IDENTITIES = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


class Spread(nn.Module):
    """A loss that is larger for features that are farther apart."""

    def forward(self, features, identities):
        return features.var() + identities.float().mean()


def test_the_neck_has_no_bias_to_learn_and_the_classifier_none_at_all():
    head = ReIDHead(64, 500, nn.CrossEntropyLoss())
    assert {name for name, p in head.named_parameters() if p.requires_grad} == {
        "bnneck.weight",
        "classifier.weight",
    }
    assert not BNNeck(4).bias.any()
    assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.05)


def test_identity_is_told_behind_the_neck_and_distance_before_it():
    head = ReIDHead(5, 4, nn.CrossEntropyLoss(), {"spread": Spread()})
    nn.init.normal_(head.classifier.weight)
    features = 3 * torch.randn(8, 5) + 1
    found = head.losses(features, IDENTITIES)
    mean, variance = features.mean(0), features.var(0, unbiased=False)
    logits = (features - mean) / (variance + 1e-5).sqrt() @ head.classifier.weight.T
    assert list(found) == ["id", "spread"]
    torch.testing.assert_close(found["id"], F.cross_entropy(logits, IDENTITIES))
    torch.testing.assert_close(found["spread"], features.var() + 1.5)


def test_center_loss_is_the_mean_squared_distance():
    loss = CenterLoss(4, 5)
    features = torch.randn(8, 5)
    distances = [(x - loss.centers[i]).norm() for x, i in zip(features, IDENTITIES, strict=True)]
    expected = torch.stack(distances).square().mean()
    torch.testing.assert_close(loss(features, IDENTITIES), expected)
