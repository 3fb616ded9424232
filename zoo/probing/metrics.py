"""Accuracy of heads side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

__all__ = ["ProbeAccuracy"]


@METRICS.register_module()
class ProbeAccuracy(BaseMetric):
    """Percentage of images whose class has the highest score, of each head, and of the best.

    The best head is chosen on the data it is tested on, as probing does: where that matters, look
    at one head, or at other data.
    """

    default_prefix = "probe"

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            label = sample["label"]
            # Ties and NaN count against the head: equal scores everywhere are not all right.
            self.results.append(
                {
                    name: bool((~(scores < scores[label])).sum() == 1)
                    for name, scores in sample["heads"].items()
                }
            )

    def compute_metrics(self, results: list[dict[str, bool]]) -> dict[str, float]:
        of_heads = {
            name: 100 * float(np.mean([result[name] for result in results])) for name in results[0]
        }
        metrics = {f"{name}/top1": value for name, value in of_heads.items()}
        return {**metrics, "best/top1": max(of_heads.values())}
