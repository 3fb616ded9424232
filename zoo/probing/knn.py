"""Weighted k-nearest-neighbour classification of features."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..errors import DataError

__all__ = ["NEIGHBORS", "TEMPERATURES", "best_knn", "knn_accuracy", "knn_votes"]

NEIGHBORS = (5, 10, 15, 20, 50, 100, 200)
TEMPERATURES = (0.07, 0.1, 0.2)


def knn_votes(
    similarity: torch.Tensor, labels: torch.Tensor, num_classes: int, temperature: float
) -> torch.Tensor:
    """Votes (B, num_classes) of neighbours: each for its class, ``exp(similarity / T)``.

    Args:
        similarity: Cosines of the neighbours, (B, k).
        labels: Their classes, (B, k).
        num_classes: Classes.
        temperature: T; infinity counts heads.
    """
    # Relative to the nearest, so that nothing overflows.
    weights = ((similarity - similarity.amax(1, keepdim=True)) / temperature).exp()
    votes = similarity.new_zeros(len(similarity), num_classes)
    return votes.scatter_add_(1, labels, weights)


def knn_accuracy(
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    queries: torch.Tensor,
    labels: torch.Tensor,
    neighbors: Sequence[int] = NEIGHBORS,
    temperatures: Sequence[float] = TEMPERATURES,
    chunk: int = 1024,
) -> dict[tuple[int, float], float]:
    """Percentage of queries whose neighbours vote for their class, by number and temperature.

    Args:
        gallery: Features (N, D) of labelled images; they are normalised here.
        gallery_labels: Their classes, (N,).
        queries: Features (M, D).
        labels: Their classes, (M,).
        neighbors: Numbers of neighbours; those above N are left out.
        temperatures: Temperatures of the votes.
        chunk: Queries at a time.

    Raises:
        DataError: If there are no features, or fewer in the gallery than the least number.
    """
    counts = [k for k in neighbors if k <= len(gallery)]
    if not counts or not len(queries):
        raise DataError(
            f"k-NN needs queries and at least {min(neighbors)} labelled images; got {len(queries)} "
            f"and {len(gallery)}"
        )
    gallery, queries = F.normalize(gallery.float(), dim=1), F.normalize(queries.float(), dim=1)
    num_classes = int(max(gallery_labels.max(), labels.max())) + 1
    right = {(k, t): 0 for k in counts for t in temperatures}
    for some, own in zip(queries.split(chunk), labels.split(chunk), strict=True):
        similarity, nearest = (some @ gallery.T).topk(max(counts), dim=1)
        found = gallery_labels[nearest]
        for k, t in right:
            votes = knn_votes(similarity[:, :k], found[:, :k], num_classes, t)
            right[k, t] += int((votes.argmax(1) == own).sum())
    return {key: 100 * count / len(queries) for key, count in right.items()}


def best_knn(accuracies: dict[tuple[int, float], float]) -> tuple[int, float, float]:
    """Neighbours, temperature and accuracy of the best pair, which is what is reported."""
    (k, t), accuracy = max(accuracies.items(), key=lambda item: item[1])
    return k, t, accuracy
