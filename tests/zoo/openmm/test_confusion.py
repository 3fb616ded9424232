"""Matrices of confusion, by cases counted by hand."""

import json

import numpy as np
import pytest
import torch

from visattn.zoo.errors import DataError
from visattn.zoo.openmm.confusion import (
    DetectionConfusion,
    SegmentationConfusion,
    match_instances,
)

CAT, DOG, NONE = 0, 1, 2
# Boxes of 10 x 10 in a row; shifted by one they overlap by 9/11, by five by 1/3.
PLACES = torch.tensor([[20.0 * i, 0, 20 * i + 10, 10] for i in range(4)])


def shifted(index, by):
    return PLACES[index] + torch.tensor([by, 0, by, 0])


def count(detections, truths, **kwargs):
    """Counts by detections (box, class, score) and annotations (box, class)."""
    boxes = torch.stack([d[0] for d in detections]) if detections else torch.zeros(0, 4)
    true_boxes = torch.stack([t[0] for t in truths]) if truths else torch.zeros(0, 4)
    return match_instances(
        boxes,
        torch.tensor([d[1] for d in detections], dtype=torch.long),
        torch.tensor([d[2] for d in detections]),
        true_boxes,
        torch.tensor([t[1] for t in truths], dtype=torch.long),
        2,
        **kwargs,
    ).tolist()


CASES = {
    "right and wrong class": (
        [(PLACES[0], CAT, 0.9), (PLACES[1], DOG, 0.8)],
        [(PLACES[0], CAT), (PLACES[1], CAT)],
        [[1, 1, 0], [0, 0, 0], [0, 0, 0]],
    ),
    "missed, and seen where nothing is": (
        [(PLACES[3], DOG, 0.9)],
        [(PLACES[0], CAT), (PLACES[1], DOG)],
        [[0, 0, 1], [0, 0, 1], [0, 1, 0]],
    ),
    "too far off": (
        [(shifted(0, 5), CAT, 0.9)],
        [(PLACES[0], CAT)],
        [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
    ),
    "twice": (
        [(shifted(0, 1), CAT, 0.9), (PLACES[0], CAT, 0.8)],
        [(PLACES[0], CAT)],
        [[1, 0, 0], [0, 0, 0], [1, 0, 0]],
    ),
    "the surer one takes it": (
        [(PLACES[0], DOG, 0.5), (shifted(0, 1), CAT, 0.6)],
        [(PLACES[0], CAT)],
        [[1, 0, 0], [0, 0, 0], [0, 1, 0]],
    ),
    "nothing at all": ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    "nothing detected": ([], [(PLACES[0], DOG)], [[0, 0, 0], [0, 0, 1], [0, 0, 0]]),
}


@pytest.mark.parametrize("case", CASES)
def test_instances(case):
    detections, truths, expected = CASES[case]
    assert count(detections, truths) == expected


def test_the_threshold_is_that_of_overlap():
    detections, truths, _ = CASES["too far off"]
    assert count(detections, truths, iou_threshold=0.3) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_detections_in_crowds_do_not_count():
    crowd = torch.tensor([[55.0, 0, 200, 50]])
    detections = [(PLACES[3], CAT, 0.9), (PLACES[1], CAT, 0.9)]
    assert count(detections, [], crowds=crowd) == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def written(metric, samples, tmp_path):
    metric.dataset_meta = {"classes": ("cat", "dog")}
    metric.process(None, samples[:1])
    metric.process(None, samples[1:])
    assert metric.evaluate(len(samples)) == {}
    return json.loads((tmp_path / "confusion.json").read_text())


def test_detections_are_summed_over_images(tmp_path):
    def sample(scores):
        classes = torch.tensor([CAT, DOG])
        found = {"bboxes": PLACES[:2], "labels": classes, "scores": torch.tensor(scores)}
        truth = {"bboxes": PLACES[:1], "labels": classes[:1]}
        return {"pred_instances": found, "gt_instances": truth}

    metric = DetectionConfusion(str(tmp_path / "confusion.json"), score_threshold=0.5)
    content = written(metric, [sample([0.9, 0.6]), sample([0.4, 0.4])], tmp_path)
    assert content["rows"] == content["columns"] == ["cat", "dog", "background"]
    assert content["num_classes"] == 2
    assert content["matrix"] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_pixels(tmp_path):
    def sample(truth, found):
        return {
            "gt_sem_seg": {"data": torch.tensor([truth])},
            "pred_sem_seg": {"data": torch.tensor([found])},
        }

    samples = [
        sample([[0, 0, 255], [1, 1, 1]], [[0, 1, 1], [1, 1, 0]]),
        sample([[1, 1]], [[0, 1]]),
    ]
    metric = SegmentationConfusion(str(tmp_path / "confusion.json"))
    content = written(metric, samples, tmp_path)
    assert content["matrix"] == [[1, 1], [2, 3]]
    assert content["rows"] == ["cat", "dog"] and content["num_classes"] == 2


@pytest.mark.parametrize("metric", [DetectionConfusion, SegmentationConfusion])
def test_images_without_annotations_are_named(metric, tmp_path):
    metric = metric(str(tmp_path / "confusion.json"))
    metric.dataset_meta = {"classes": ("cat", "dog")}
    found = {"bboxes": PLACES, "labels": torch.zeros(4), "scores": torch.ones(4)}
    sample = {"img_path": "x.png", "pred_instances": found, "pred_sem_seg": np.zeros(3)}
    with pytest.raises(DataError, match="x.png comes without annotations"):
        metric.process(None, [sample])
