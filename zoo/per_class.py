"""How a model does on each class: a table, and a picture of what it takes for what."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .benchmark.report import print_table
from .files import replacing

Row = dict[str, Any]

MAX_NUMBERED = 24
"""Classes up to which cells of a picture show their numbers."""


@dataclass(frozen=True)
class Confusion:
    """Counts of what is taken for what.

    Attributes:
        rows: Names of true classes.
        columns: Names of predicted ones.
        matrix: Counts, (rows, columns).
        num_classes: Number of classes; what comes after them is the background.
    """

    rows: list[str]
    columns: list[str]
    matrix: np.ndarray
    num_classes: int

    @classmethod
    def read(cls, path: str | Path) -> "Confusion":
        """Reads what the metrics of ``zoo.openmm.confusion`` or ``DumpClassification`` wrote."""
        content = json.loads(Path(path).read_text())
        if "confusion_matrix" in content:
            matrix = np.array(content["confusion_matrix"])
            names = content["classes"] or [str(index) for index in range(len(matrix))]
            return cls(names, names, matrix, len(names))
        names = content["rows"]
        return cls(names, content["columns"], np.array(content["matrix"]), content["num_classes"])


def table_of(confusion: Confusion, task: str) -> list[Row]:
    """A row a class, of its share of right predictions.

    Args:
        confusion: Counts.
        task: ``"classification"``, ``"detection"`` or ``"segmentation"``, which also has ``iou``.

    Returns:
        Rows with ``class``, ``count`` (annotated images, instances or pixels), ``recall`` and
        ``precision``, in percent; None where there is nothing to take a share of.
    """
    rows = []
    for index in range(confusion.num_classes):
        right = int(confusion.matrix[index, index])
        annotated = int(confusion.matrix[index].sum())
        predicted = int(confusion.matrix[:, index].sum())
        row = {
            "class": confusion.rows[index],
            "count": annotated,
            "recall": _percent(right, annotated),
            "precision": _percent(right, predicted),
        }
        if task == "segmentation":
            row["iou"] = _percent(right, annotated + predicted - right)
        rows.append(row)
    return rows


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def coco_precisions(
    annotations: str | Path, predictions: str | Path, kind: str, classes: Sequence[str]
) -> list[Row]:
    """Average precisions of each class, as COCO counts them.

    Args:
        annotations: COCO's annotation file.
        predictions: COCO's result file.
        kind: ``"bbox"`` or ``"segm"``.
        classes: Names of classes.

    Returns:
        A row a class with ``{kind}_AP``, ``{kind}_AP50`` and ``{kind}_AP75`` in percent; None for
        classes without annotations.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(str(annotations))
    results = json.loads(Path(predictions).read_text())
    columns = (f"{kind}_AP", f"{kind}_AP50", f"{kind}_AP75")
    if not results:
        return [dict.fromkeys(columns, 0.0) for _ in classes]
    for entry in results if kind == "segm" else ():
        # With a box, its area would go before that of the mask.
        entry.pop("bbox", None)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), kind)
    evaluation.params.catIds = truth.getCatIds(catNms=list(classes))
    evaluation.evaluate()
    evaluation.accumulate()
    # (IoU thresholds, recalls, classes, areas, numbers of detections)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return [
        dict(zip(columns, map(_mean, (of, of[:1], of[5:6])), strict=True))
        for of in (precision[:, :, index] for index in range(precision.shape[2]))
    ]


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return round(100 * float(known.mean()), 2) if known.size else None


def write_table(rows: Sequence[Row], path: str | Path) -> None:
    """Writes rows as CSV."""
    with replacing(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Prints rows, and their mean."""
    body = [[_to_text(value) for value in row.values()] for row in rows]
    body.append(["mean", *(_to_text(_mean_of(rows, key)) for key in list(rows[0])[1:])])
    print_table(title, list(rows[0]), body)


def _mean_of(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values and key != "count" else None


def _to_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def draw_confusion(confusion: Confusion, path: str | Path, title: str = "") -> None:
    """Draws counts as a picture, each row in shares of its sum.

    Args:
        confusion: Counts.
        path: Picture to write.
        title: What is written above.
    """
    from matplotlib.figure import Figure

    totals = confusion.matrix.sum(1, keepdims=True)
    shares = 100 * confusion.matrix / np.maximum(totals, 1)
    rows, columns = shares.shape
    side = min(max(4.0, 0.42 * columns + 2), 24.0)
    figure = Figure((side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    size = 9 if columns <= MAX_NUMBERED else max(3.0, 9 * MAX_NUMBERED / columns)
    axis.set_xticks(range(columns), confusion.columns, rotation=90, fontsize=size)
    axis.set_yticks(range(rows), confusion.rows, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("annotated")
    axis.set_title(title)
    if columns <= MAX_NUMBERED:
        for y, x in zip(*np.nonzero(confusion.matrix), strict=True):
            colour = "white" if shares[y, x] > 55 else "black"
            axis.text(x, y, f"{shares[y, x]:.0f}", ha="center", va="center", color=colour,
                      fontsize=8)  # fmt: skip
    figure.colorbar(image, ax=axis, label="% of the annotated", shrink=0.7)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
