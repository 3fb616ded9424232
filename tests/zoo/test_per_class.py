"""Tables of classes and pictures of confusion."""

import json

import numpy as np
import PIL.Image
import pytest

from visattn.zoo.per_class import Confusion, coco_precisions, draw_confusion, table_of, write_table

NAMES = ["cat", "dog", "cow"]


def confusion(matrix, rows=NAMES):
    return Confusion(list(rows), list(rows), np.array(matrix), 3)


def test_shares_of_a_segmentation():
    rows = table_of(confusion([[6, 2, 0], [0, 4, 0], [0, 0, 0]]), "segmentation")
    assert rows == [
        {"class": "cat", "count": 8, "recall": 75.0, "precision": 100.0, "iou": 75.0},
        {"class": "dog", "count": 4, "recall": 100.0, "precision": 66.67, "iou": 66.67},
        {"class": "cow", "count": 0, "recall": None, "precision": None, "iou": None},
    ]


def test_the_background_of_detections_is_no_class():
    matrix = [[3, 0, 0, 1], [0, 2, 0, 0], [0, 1, 0, 2], [1, 0, 0, 0]]
    rows = table_of(confusion(matrix, [*NAMES, "background"]), "detection")
    assert [row["class"] for row in rows] == NAMES
    assert [row["count"] for row in rows] == [4, 2, 3]
    assert [row["recall"] for row in rows] == [75.0, 100.0, 0.0]
    assert [row["precision"] for row in rows] == [75.0, 66.67, None]


def test_reads_what_classifiers_dump(tmp_path):
    dump = {"classes": NAMES[:2], "confusion_matrix": [[1, 2], [0, 3]]}
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    read = Confusion.read(tmp_path / "dump.json")
    assert (read.rows, read.num_classes) == (NAMES[:2], 2)
    assert read.matrix.tolist() == [[1, 2], [0, 3]]


@pytest.fixture
def coco(tmp_path):
    """Two cats found, one of two dogs found, and a cow seen where none is."""
    boxes = [[0, 0, 10, 10], [20, 0, 10, 10], [40, 0, 10, 10], [60, 0, 10, 10]]
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": category, "bbox": box, "area": 100,
         "iscrowd": 0}
        for i, (box, category) in enumerate(zip(boxes, [3, 3, 5, 5], strict=True))
    ]  # fmt: skip
    content = {
        "images": [{"id": 1, "width": 100, "height": 100, "file_name": "a.png"}],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in zip((3, 5, 7), NAMES, strict=True)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    found = [(3, boxes[0], 0.9), (3, boxes[1], 0.8), (5, boxes[2], 0.9), (7, boxes[3], 0.9)]
    results = [
        {"image_id": 1, "category_id": category, "bbox": box, "score": score}
        for category, box, score in found
    ]
    (tmp_path / "found.bbox.json").write_text(json.dumps(results))
    (tmp_path / "none.bbox.json").write_text("[]")
    return tmp_path


def test_average_precisions_are_those_of_each_class(coco):
    rows = coco_precisions(coco / "truth.json", coco / "found.bbox.json", "bbox", NAMES)
    # Half of the dogs: precision 1 at 51 of 101 recalls.
    assert [row["bbox_AP50"] for row in rows] == [100.0, pytest.approx(5100 / 101, abs=0.01), None]
    assert rows[0]["bbox_AP"] == rows[0]["bbox_AP75"] == 100.0


def test_no_predictions_have_no_precision(coco):
    rows = coco_precisions(coco / "truth.json", coco / "none.bbox.json", "bbox", NAMES)
    assert [row["bbox_AP"] for row in rows] == [0.0] * 3


def test_tables_are_written(tmp_path):
    rows = table_of(confusion(np.eye(3, dtype=int)), "classification")
    write_table(rows, tmp_path / "new" / "table.csv")
    lines = (tmp_path / "new" / "table.csv").read_text().splitlines()
    assert lines[:2] == ["class,count,recall,precision", "cat,1,100.0,100.0"]


def test_rows_of_a_picture_are_shares(tmp_path):
    """The darker a cell, the greater its share of the row, whatever the row's sum."""

    def darkness(matrix):
        draw_confusion(confusion(matrix), tmp_path / "c.png")
        return np.asarray(PIL.Image.open(tmp_path / "c.png").convert("L"), float)

    few = darkness([[0, 1, 0], [0, 1, 0], [0, 0, 1]])
    many = darkness([[0, 90, 0], [0, 7, 0], [0, 0, 500]])
    other = darkness([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert np.abs(few - many).max() == 0
    assert np.abs(few - other).max() > 100


def test_pictures_of_many_classes_stay_small(tmp_path):
    names = [f"class {i}" for i in range(150)]
    counts = np.eye(150, dtype=int)
    draw_confusion(Confusion(names, names, counts, 150), tmp_path / "c.png")
    assert max(PIL.Image.open(tmp_path / "c.png").size) < 4000
