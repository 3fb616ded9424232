"""Accuracy of classifiers, and a dump of their predictions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Percentage of images whose class is among the k highest scores.

    Args:
        topk: Values of k; those above the number of classes are left out.
    """

    default_prefix = "accuracy"

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        collect_device: str = "cpu",
        prefix: str | None = None,
    ):
        super().__init__(collect_device, prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            scores, label = sample["scores"], sample["label"]
            # Ties and NaN count against the model: equal scores everywhere are not all right.
            rank = int((~(scores < scores[label])).sum()) - 1
            self.results.append((rank, len(scores)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        ranks = np.array([rank for rank, _ in results])
        num_classes = results[0][1]
        return {f"top{k}": 100 * float((ranks < k).mean()) for k in self.topk if k <= num_classes}


@METRICS.register_module()
class DumpClassification(BaseMetric):
    """Writes what a classifier predicted as JSON.

    The file has ``classes``; ``confusion_matrix`` (rows are true classes, columns predicted ones);
    ``per_class`` accuracies in percent, None for classes without images; and ``predictions``, each
    with ``path``, ``label``, ``predicted`` and ``score``, and with ``top``: the best five
    (class, score) pairs.

    Args:
        out_file: Path of the JSON file.
    """

    default_prefix = "dump"

    def __init__(self, out_file: str, collect_device: str = "cpu", prefix: str | None = None):
        super().__init__(collect_device, prefix)
        self.out_file = Path(out_file)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            scores, ids = sample["scores"].topk(min(5, len(sample["scores"])))
            self.results.append(
                {
                    "path": sample["path"],
                    "label": sample["label"],
                    "predicted": int(ids[0]),
                    "score": float(scores[0]),
                    "top": list(zip(ids.tolist(), scores.tolist(), strict=True)),
                }
            )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        classes = list((self.dataset_meta or {}).get("classes", ()))
        labels = [result["label"] for result in results]
        predicted = [result["predicted"] for result in results]
        size = max(len(classes), max(labels) + 1, max(predicted) + 1)
        confusion = np.zeros((size, size), dtype=int)
        np.add.at(confusion, (labels, predicted), 1)
        totals = confusion.sum(1)
        per_class = [
            100 * int(confusion[i, i]) / int(total) if total else None
            for i, total in enumerate(totals)
        ]
        self.out_file.parent.mkdir(parents=True, exist_ok=True)
        self.out_file.write_text(
            json.dumps(
                {
                    "classes": classes,
                    "confusion_matrix": confusion.tolist(),
                    "per_class": per_class,
                    "predictions": results,
                }
            )
        )
        return {}
