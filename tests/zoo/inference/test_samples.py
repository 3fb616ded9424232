"""Data samples of mmdet and mmseg as results, by hand-made ones."""

import numpy as np
import PIL.Image
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from visattn.zoo.inference.drawing import draw
from visattn.zoo.inference.results import Classification, Detection, Panoptic, Segmentation
from visattn.zoo.inference.samples import read_predictions, read_truth, to_sample
from visattn.zoo.registry import register_all

NAMES = ["cat", "dog", "sky"]


@pytest.fixture(scope="module")
def sample_class():
    register_all("mmdet")
    from mmdet.structures import DetDataSample

    return DetDataSample


def test_segments_of_a_panoptic_map(sample_class):
    ids = torch.full((4, 6), 3)  # nothing: beyond all classes
    ids[:2] = 2 + 1000
    ids[3, :2], ids[3, 2:4] = 1 + 2000, 1 + 3000
    sample = sample_class()
    sample.pred_panoptic_seg = PixelData(sem_seg=ids[None])
    result = read_predictions(sample, NAMES, "x.png", (4, 6))
    assert result.labels == ["sky", "dog", "dog"] and result.classes.tolist() == [2, 1, 1]
    assert result.map.tolist() == [[1] * 6, [1] * 6, [0] * 6, [2, 2, 3, 3, 0, 0]]
    areas = [segment["area"] for segment in result.to_json()["segments"]]
    assert areas == [12, 2, 2]
    again = read_predictions(to_sample(result, 3), NAMES, "x.png", (4, 6))
    assert (again.map == result.map).all() and again.labels == result.labels


def test_instances_come_in_the_order_of_their_scores(sample_class):
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 4, 4]])
    sample = sample_class()
    sample.pred_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 1, 2]), scores=torch.tensor([0.4, 0.9, 0.1])
    )
    result = read_predictions(sample, NAMES, None, (4, 4), score_threshold=0.3)
    assert result.labels == ["dog", "cat"]
    assert result.boxes.tolist() == boxes[[1, 0]].tolist() and result.masks is None


def test_the_truth_has_no_scores(sample_class):
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    sample = sample_class()
    masks = np.zeros((1, 4, 4), np.uint8)
    masks[0, 1:3, 1:3] = 1
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.tensor([[1.0, 1, 3, 3]])),
        labels=torch.tensor([2]),
        masks=BitmapMasks(masks, 4, 4),
    )
    result = read_truth(sample, NAMES, None, (4, 4))
    assert result.labels == ["sky"] and result.scores is None
    assert (result.masks == masks.astype(bool)).all()
    assert read_truth(sample_class(), NAMES, None, (4, 4)) is None


SIZE = (48, 64)
MASKS = np.zeros((2, *SIZE), bool)
MASKS[0, 8:24, 8:24] = MASKS[1, 20:40, 30:60] = True
BOXES = np.array([[8, 8, 24, 24], [30, 20, 60, 40]], np.float32)
INSTANCES = (["cat", "dog"], np.array([0.9, 0.8], np.float32), np.array([0, 1]), BOXES)
RESULTS = {
    "boxes": Detection(None, SIZE, *INSTANCES),
    "masks": Detection(None, SIZE, *INSTANCES, MASKS),
    "truth": Detection(None, SIZE, INSTANCES[0], None, *INSTANCES[2:], MASKS),
    "map": Segmentation(None, SIZE, (MASKS[0] + 2 * MASKS[1]).astype(np.uint8), NAMES),
    "panoptic": Panoptic(None, SIZE, MASKS[0] + 2 * MASKS[1].astype(int), ["cat", "sky"],
                         np.array([0, 2])),
}  # fmt: skip


@pytest.mark.parametrize("kind", RESULTS)
def test_drawings_change_what_was_found_alone(sample_class, kind):
    image = PIL.Image.fromarray(np.full((*SIZE, 3), 128, np.uint8))
    drawn = np.asarray(draw(image, RESULTS[kind], NAMES), int)
    scale, rest = divmod(len(drawn), SIZE[0])
    assert rest == 0 and scale > 1 and drawn.shape[1] == scale * SIZE[1]
    changed = (np.abs(drawn - 128) > 3).any(-1)[::scale, ::scale]
    assert changed[20:22, 31:59].any() and changed[8:10, 9:23].any()
    if kind != "map":
        assert not changed[42:, :4].any()


def test_large_images_keep_their_size(sample_class):
    image = PIL.Image.new("RGB", (700, 500))
    result = Detection(None, (500, 700), *INSTANCES)
    assert draw(image, result, NAMES).size == image.size


@pytest.mark.parametrize(
    "empty",
    [
        Detection(None, SIZE, [], np.zeros(0), np.zeros(0, int), np.zeros((0, 4)), MASKS[:0]),
        Panoptic(None, SIZE, np.zeros(SIZE, int), [], np.zeros(0, int)),
        Segmentation(None, SIZE, np.full(SIZE, 255, np.uint8), NAMES),
    ],
)
def test_nothing_found_leaves_the_image(sample_class, empty):
    image = PIL.Image.fromarray(np.full((*SIZE, 3), 128, np.uint8))
    assert (np.asarray(draw(image, empty, NAMES)) == 128).all()


def test_classes_are_drawn_beside_the_image():
    image = PIL.Image.new("RGB", (300, 250), "red")
    result = Classification(None, (250, 300), NAMES, np.array([0.7, 0.2, 0.1]), np.arange(3))
    drawn = draw(image, result, NAMES)
    assert drawn.height == 250 and drawn.width > 300
    assert (np.asarray(drawn.crop((0, 0, 300, 250))) == np.asarray(image)).all()
