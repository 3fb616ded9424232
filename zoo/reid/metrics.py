"""Figures of retrieval: CMC, mAP, mINP and ROC, by the protocols of re-identification."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import auc

from ..errors import DataError
from .distances import Distances

__all__ = ["Labels", "Ranking", "RocCurve", "nearest", "rank", "roc"]

JUNK = -1
BINS = 2**16


@dataclass(frozen=True)
class Labels:
    """Who is seen on images, and by which camera.

    An image of the gallery is junk for a query, neither right nor wrong, if its identity is -1, or
    if both identity and camera are the query's.

    Attributes:
        identities: Identities (N,).
        cameras: Cameras (N,), or None where they do not matter.
    """

    identities: torch.Tensor
    cameras: torch.Tensor | None = None

    @classmethod
    def of(cls, identities: Any, cameras: Any = None) -> "Labels":
        """From sequences or arrays of whole numbers."""
        cameras = None if cameras is None else torch.as_tensor(cameras)
        return cls(torch.as_tensor(identities), cameras)

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, part: Any) -> "Labels":
        cameras = None if self.cameras is None else self.cameras[part]
        return Labels(self.identities[part], cameras)


def _matches(query: Labels, gallery: Labels, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the gallery are right and which are junk, each (queries, gallery)."""
    right = query.identities[:, None] == gallery.identities
    junk = (gallery.identities == JUNK)[None].expand_as(right)
    if query.cameras is not None:
        junk = junk | (right & (query.cameras[:, None] == gallery.cameras))
    return (right & ~junk).to(device), junk.to(device)


def _check(distances: Distances, query: Labels, gallery: Labels) -> None:
    for name, labels, count in zip(
        ("queries", "images of the gallery"), (query, gallery), distances.shape, strict=True
    ):
        cameras = count if labels.cameras is None else len(labels.cameras)
        if not len(labels) == cameras == count:
            raise DataError(
                f"{count} {name} have {len(labels)} identities and {cameras} cameras: give one each"
            )
    if (query.cameras is None) != (gallery.cameras is None):
        raise DataError("give the cameras of both queries and gallery, or of neither")


@dataclass(frozen=True)
class Ranking:
    """Where the right images of each query are in its ranked list.

    Queries without a right image, all others included, have NaN and take no part in the means.

    Attributes:
        average_precisions: Average precision of each query, (Q,).
        inverse_negative_penalties: Right images over the place of the last of them, (Q,).
        first_places: Place of the first right image, from 1, (Q,).
    """

    average_precisions: np.ndarray
    inverse_negative_penalties: np.ndarray
    first_places: np.ndarray

    @property
    def is_valid(self) -> np.ndarray:
        """Which queries have a right image, (Q,)."""
        return ~np.isnan(self.average_precisions)

    def cmc(self, rank: int) -> float:
        """Share of the queries with a right image among the first ``rank``."""
        return float((self.first_places[self.is_valid] <= rank).mean())

    def summary(self, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """mAP, mINP and CMC in percent.

        Raises:
            DataError: If no query has a right image.
        """
        if not self.is_valid.any():
            raise DataError(
                f"none of the {len(self.is_valid)} queries has a right image in the gallery that "
                "another camera took: check identities and cameras of both"
            )
        return {
            "mAP": 100 * float(np.nanmean(self.average_precisions)),
            "mINP": 100 * float(np.nanmean(self.inverse_negative_penalties)),
            **{f"rank{k}": 100 * self.cmc(k) for k in ranks},
        }


def rank(distances: Distances, query: Labels, gallery: Labels) -> Ranking:
    """Ranks the gallery for each query.

    Nothing is sorted but the distances of what is wrong: a right image is as many places behind
    those right ones before it as there are wrong ones that are no farther. So ties count against
    the model.

    Args:
        distances: Distances of Q queries to G images.
        query: Labels of the queries.
        gallery: Labels of the gallery.

    Returns:
        Places of what is right.

    Raises:
        DataError: If labels and distances do not go together.
    """
    _check(distances, query, gallery)
    parts = []
    for block, rows in distances.blocks():
        right, junk = _matches(query[block], gallery, rows.device)
        parts.append(_rank_block(rows, right, junk))
    return Ranking(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _rank_block(rows: torch.Tensor, right: torch.Tensor, junk: torch.Tensor) -> list[np.ndarray]:
    counts = right.sum(1)  # (n,)
    found = rows.new_full((len(rows), max(int(counts.max()), 1)), torch.inf)
    place = torch.arange(found.shape[1], device=rows.device)
    taken = place < counts[:, None]  # (n, most right images)
    found[taken] = rows[right]  # both by rows
    found = found.sort(1).values
    wrong = _sorted(rows.masked_fill_(right | junk, torch.inf))
    # (n, most right images), from 1
    places = place + 1 + torch.searchsorted(wrong, found.contiguous(), right=True)
    hits = (place + 1).to(torch.float64)
    precisions = torch.where(taken, hits / places, 0.0)
    last = places.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0]
    values = (precisions.sum(1) / counts, counts / last.double(), places[:, 0].double())
    return [torch.where(counts > 0, v, torch.nan).cpu().numpy() for v in values]


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    """Rows sorted, in place on a CPU."""
    if rows.device.type != "cpu":
        return rows.sort(1).values
    rows.numpy().sort(1)  # many times faster than torch's, which makes indices, too
    return rows


def nearest(
    distances: Distances, query: Labels, gallery: Labels, k: int = 10
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``k`` of the ranked list of each query, without what is junk for it.

    Returns:
        Indices in the gallery (Q, k) and their distances, infinite where a list ends before.
    """
    _check(distances, query, gallery)
    indices, values = [], []
    for block, rows in distances.blocks():
        _, junk = _matches(query[block], gallery, rows.device)
        found = rows.masked_fill_(junk, torch.inf).topk(min(k, rows.shape[1]), largest=False)
        indices.append(found.indices.cpu())
        values.append(found.values.cpu())
    return torch.cat(indices), torch.cat(values)


@dataclass(frozen=True)
class RocCurve:
    """How well a threshold on the distance tells right pairs from wrong ones.

    Attributes:
        thresholds: Distances up to which pairs are accepted, rising.
        true_rates: Share of the right pairs accepted at each.
        false_rates: Share of the wrong pairs accepted at each.
    """

    thresholds: np.ndarray
    true_rates: np.ndarray
    false_rates: np.ndarray

    @property
    def area(self) -> float:
        """Area under the curve."""
        return float(auc(np.append(0, self.false_rates), np.append(0, self.true_rates)))

    def true_rate_at(self, false_rate: float) -> float:
        """Highest share of right pairs accepted with no more than a share of wrong ones."""
        index = np.searchsorted(self.false_rates, false_rate, side="right") - 1
        return float(self.true_rates[index]) if index >= 0 else 0.0


def roc(distances: Distances, query: Labels, gallery: Labels, bins: int = BINS) -> RocCurve:
    """The receiver operating characteristic of all pairs, from histograms of their distances.

    Args:
        distances: Distances of Q queries to G images.
        query: Labels of the queries.
        gallery: Labels of the gallery.
        bins: Number of thresholds, evenly spread.

    Raises:
        DataError: If there are no right or no wrong pairs.
    """
    _check(distances, query, gallery)
    limit = distances.limit
    counts = torch.zeros(2, bins, dtype=torch.int64)
    for block, rows in distances.blocks():
        right, junk = _matches(query[block], gallery, rows.device)
        index = (rows * (bins / limit)).long().clamp_(max=bins - 1)
        for kind, chosen in enumerate((right, ~(right | junk))):
            counts[kind] += torch.bincount(index[chosen], minlength=bins).cpu()
    if not counts.sum(1).all():
        raise DataError("a curve needs pairs of the same and pairs of different identities")
    true_rates, false_rates = (counts.cumsum(1) / counts.sum(1, keepdim=True)).double().numpy()
    return RocCurve(np.arange(1, bins + 1) * (limit / bins), true_rates, false_rates)
