"""What mmdet takes of panopticapi, which no package index has: ids as colours, and quality sums."""

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

VOID = 0
OFFSET = 256**3


def rgb2id(colours: np.ndarray) -> np.ndarray:
    """Ids (...) of colours (..., 3): red counts ones, green 256s, blue 65536s."""
    return np.asarray(colours, np.int32) @ np.array([1, 256, 65536], np.int32)


def id2rgb(ids: np.ndarray) -> np.ndarray:
    """Colours (..., 3) of ids (...), as ``rgb2id`` reads them."""
    shifts = np.array([0, 8, 16])
    return (np.asarray(ids)[..., None] >> shifts & 255).astype(np.uint8)


@dataclass
class CategoryCounts:
    """Matches of a category: pairs of segments, their summed IoU, and segments without a pair.

    Attributes:
        iou: Sum of the IoU of matched pairs.
        tp: Matched pairs.
        fp: Predicted segments without a pair.
        fn: True segments without a pair.
    """

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other: "CategoryCounts") -> "CategoryCounts":
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    def quality(self) -> dict[str, float]:
        """Panoptic, segmentation and recognition quality; 0 where nothing was matched."""
        count = self.tp + 0.5 * self.fp + 0.5 * self.fn
        return {
            "pq": self.iou / count if count else 0.0,
            "sq": self.iou / self.tp if self.tp else 0.0,
            "rq": self.tp / count if count else 0.0,
        }


class PQStat:
    """Matches by category (panoptic quality, arXiv 1801.00868)."""

    def __init__(self) -> None:
        self.pq_per_cat: defaultdict[int, CategoryCounts] = defaultdict(CategoryCounts)

    def __getitem__(self, category: int) -> CategoryCounts:
        return self.pq_per_cat[category]

    def __iadd__(self, other: "PQStat") -> "PQStat":
        for category, counts in other.pq_per_cat.items():
            self.pq_per_cat[category] += counts
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Mean quality over the categories that occur, and the quality of each.

        Args:
            categories: Categories by id, with ``isthing``.
            isthing: True for things alone, False for stuff alone, None for both.
        """
        each, occurring = {}, []
        for category in self._chosen(categories, isthing):
            counts = self.pq_per_cat[category]
            each[category] = counts.quality()
            if counts.tp + counts.fp + counts.fn:
                occurring.append(each[category])
        mean = {
            name: sum(quality[name] for quality in occurring) / max(len(occurring), 1)
            for name in ("pq", "sq", "rq")
        }
        return {**mean, "n": len(occurring)}, each

    def _chosen(
        self, categories: Mapping[int, Mapping[str, Any]], isthing: bool | None
    ) -> Iterator[int]:
        for category, info in categories.items():
            if isthing is None or bool(info["isthing"]) == isthing:
                yield category


def install() -> bool:
    """Provides ``panopticapi`` if it is missing; a second call changes nothing.

    Must run before ``mmdet`` is imported.

    Returns:
        Whether it is ours.
    """
    try:
        return getattr(importlib.import_module("panopticapi"), "__file__", None) == __file__
    except ModuleNotFoundError as error:
        if error.name != "panopticapi":
            raise
    contents = {
        "utils": {"rgb2id": rgb2id, "id2rgb": id2rgb},
        "evaluation": {"OFFSET": OFFSET, "VOID": VOID, "PQStat": PQStat},
    }
    package = ModuleType("panopticapi", __doc__)
    package.__file__, package.__path__ = __file__, []
    sys.modules["panopticapi"] = package
    for name, members in contents.items():
        module = ModuleType(f"panopticapi.{name}")
        vars(module).update(members)
        setattr(package, name, module)
        sys.modules[module.__name__] = module
    return True
