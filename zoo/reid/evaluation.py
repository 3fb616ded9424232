"""mmengine's metric of re-identification, and the ranked lists it writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..errors import ConfigError, DataError
from .distances import Distances, RerankedDistances, expand_descriptors
from .metrics import Labels, nearest, rank, roc

__all__ = ["ReIDMetric"]


@METRICS.register_module()
class ReIDMetric(BaseMetric):
    """mAP, mINP, CMC and, if wanted, points of the ROC of descriptors, in percent.

    Queries without a right image that another camera took are left out, as is what is junk.

    Args:
        ranks: Ranks of the CMC.
        metric: ``"cosine"`` or ``"euclidean"``; on normalised descriptors both rank alike.
        use_cameras: Whether images of a query's identity by its own camera are junk.
        rerank: Whether to re-rank, or arguments of ``RerankedDistances``, as
            ``dict(k1=20, k2=6)``.
        query_expansion: Whether to expand queries by the gallery, or arguments of
            ``expand_descriptors``, as ``dict(k=5, alpha=3.0)``.
        expand_gallery: Whether the gallery is expanded by itself, too.
        false_rates: Rates of wrong pairs at which the rate of right ones is given.
        out_file: JSON file for the ranked list of each query; see ``ranked_lists``.
        list_length: Length of these lists.
    """

    default_prefix = "reid"

    def __init__(
        self,
        ranks: Sequence[int] = (1, 5, 10),
        metric: str = "cosine",
        use_cameras: bool = True,
        rerank: bool | dict[str, Any] = False,
        query_expansion: bool | dict[str, Any] = False,
        expand_gallery: bool = False,
        false_rates: Sequence[float] = (),
        out_file: str | None = None,
        list_length: int = 50,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        if expand_gallery and query_expansion is False:
            raise ConfigError("expand_gallery goes by query_expansion: set query_expansion=True")
        self.ranks = tuple(ranks)
        self.metric = metric
        self.use_cameras = use_cameras
        self.rerank = _arguments(rerank)
        self.query_expansion = _arguments(query_expansion)
        self.expand_gallery = expand_gallery
        self.false_rates = tuple(false_rates)
        self.out_file = None if out_file is None else Path(out_file)
        self.list_length = list_length

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            # A view would take its whole batch along to other processes.
            self.results.append({**sample, "descriptor": sample["descriptor"].cpu().clone()})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        query, gallery = (
            [result for result in results if bool(result["is_query"]) is wanted]
            for wanted in (True, False)
        )
        if not query or not gallery:
            raise DataError(
                f"{len(query)} queries and {len(gallery)} images of a gallery are no test of "
                "re-identification: set the data set's split='test'"
            )
        descriptors = [
            torch.stack([r.pop("descriptor") for r in part]) for part in (query, gallery)
        ]
        labels = [self._labels(part) for part in (query, gallery)]
        distances = self.distances(*descriptors)
        values = rank(distances, *labels).summary(self.ranks)
        if self.false_rates:
            curve = roc(distances, *labels)
            values["auc"] = 100 * curve.area
            for rate in self.false_rates:
                values[f"tpr@fpr={rate:g}"] = 100 * curve.true_rate_at(rate)
        if self.out_file is not None:
            lists = ranked_lists(distances, labels, query, gallery, self.list_length)
            self.out_file.parent.mkdir(parents=True, exist_ok=True)
            self.out_file.write_text(json.dumps({"metrics": values, "queries": lists}))
        return values

    def _labels(self, results: Sequence[dict[str, Any]]) -> Labels:
        identities = [result["identity"] for result in results]
        return Labels.of(identities, [r["camera"] for r in results] if self.use_cameras else None)

    def distances(self, query: torch.Tensor, gallery: torch.Tensor) -> Distances:
        """Distances of descriptors (Q, D) to (G, D), expanded and re-ranked as configured."""
        if self.query_expansion is not None:
            query = expand_descriptors(query, gallery, **self.query_expansion)
        if self.expand_gallery:
            gallery = expand_descriptors(gallery, gallery, **self.query_expansion)
        if self.rerank is not None:
            return RerankedDistances(query, gallery, self.metric, **self.rerank)
        return Distances(query, gallery, self.metric)


def _arguments(wish: bool | dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of what is wished for, or None if it is not."""
    if isinstance(wish, bool):
        return {} if wish else None
    return dict(wish)


def ranked_lists(
    distances: Distances,
    labels: Sequence[Labels],
    query: Sequence[dict[str, Any]],
    gallery: Sequence[dict[str, Any]],
    length: int = 50,
) -> list[dict[str, Any]]:
    """The first images of the gallery for each query, as can be written as JSON.

    Args:
        distances: Distances of the queries to the gallery.
        labels: Labels of the queries and of the gallery.
        query: ``path``, ``identity`` and ``camera`` of each query.
        gallery: The same of the gallery.
        length: Length of the lists.

    Returns:
        ``path``, ``identity``, ``camera`` and ``ranked`` of each query: a list of ``path``,
        ``identity``, ``camera``, ``distance`` and ``right`` of images without junk.
    """
    indices, values = nearest(distances, *labels, k=length)
    lists = []
    for item, row, near in zip(query, indices.tolist(), values.tolist(), strict=True):
        ranked = [
            {
                **_described(gallery[index]),
                "distance": distance,
                "right": gallery[index]["identity"] == item["identity"],
            }
            for index, distance in zip(row, near, strict=True)
            if distance != float("inf")
        ]
        lists.append({**_described(item), "ranked": ranked})
    return lists


def _described(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("path", "identity", "camera")}
