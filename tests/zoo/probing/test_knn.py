"""k-NN classification of features."""

import pytest
import torch

from visattn.zoo.errors import DataError
from visattn.zoo.probing.knn import best_knn, knn_accuracy, knn_votes


def data(count=40, queries=15):
    labels, own = torch.arange(count) % 4, torch.arange(queries) % 4
    centres = torch.randn(4, 8)
    return (
        centres[labels] + torch.randn(count, 8),
        labels,
        centres[own] + torch.randn(queries, 8),
        own,
    )


def test_an_image_is_its_own_nearest():
    gallery, _, _, _ = data()
    labels = torch.randperm(len(gallery))
    accuracy = knn_accuracy(gallery, labels, gallery, labels, [1], [0.07])
    assert accuracy == {(1, 0.07): 100.0}


def test_is_the_definition():
    gallery, labels, queries, own = data()
    found = knn_accuracy(gallery, labels, queries, own, [5, 10], [0.07, 0.2], chunk=4)
    for (k, t), accuracy in found.items():
        right = 0
        for query, label in zip(queries, own, strict=True):
            cosines = torch.cosine_similarity(query, gallery, dim=1)
            votes = torch.zeros(4)
            for near in cosines.argsort(descending=True)[:k]:
                votes[labels[near]] += (cosines[near] / t).exp()
            right += int(votes.argmax() == label)
        assert accuracy == pytest.approx(100 * right / len(own))


def test_the_order_of_the_gallery_does_not_matter():
    gallery, labels, queries, own = data()
    order = torch.randperm(len(gallery))
    assert knn_accuracy(gallery, labels, queries, own) == knn_accuracy(
        gallery[order], labels[order], queries, own
    )


def test_an_infinite_temperature_counts_heads():
    similarity = torch.tensor([[0.99, 0.1, 0.05]])
    votes = knn_votes(similarity, torch.tensor([[2, 0, 0]]), 3, float("inf"))
    assert votes.tolist() == [[2.0, 0.0, 1.0]]


def test_more_neighbours_than_images_are_left_out():
    gallery, labels, queries, own = data(12)
    found = knn_accuracy(gallery, labels, queries, own)
    assert {k for k, _ in found} == {5, 10}
    with pytest.raises(DataError, match="at least 5 labelled images; got 15 and 3"):
        knn_accuracy(gallery[:3], labels[:3], queries, own)


def test_the_best_pair_is_reported():
    assert best_knn({(5, 0.1): 40.0, (10, 0.1): 60.0, (10, 0.2): 60.0}) == (10, 0.1, 60.0)
