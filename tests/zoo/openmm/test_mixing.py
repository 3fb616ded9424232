"""Mosaic and mixup by chance, and their end."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from visattn.zoo.registry import register_all

register_all("mmdet")

from mmdet.datasets.transforms import PackDetInputs  # noqa: E402
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402

from visattn.zoo.openmm.mixing import MixingStopHook, MosaicMixUp  # noqa: E402
from visattn.zoo.training.loops import SeededDataset  # noqa: E402


def sample(value: int) -> dict:
    return {
        "img": np.full((40, 48, 3), value, np.uint8),
        "img_shape": (40, 48),
        "gt_bboxes": HorizontalBoxes(np.array([[4, 4, 30, 30]], np.float32)),
        "gt_bboxes_labels": np.array([value]),
        "gt_ignore_flags": np.zeros(1, bool),
    }


class Data(list):
    pass


@pytest.fixture
def data():
    return Data(sample(value) for value in range(10, 60, 10))


def mixed(transform, data, seed=0):
    random.seed(seed)
    np.random.seed(seed)
    results = sample(1)
    results["mix_results"] = [data[i] for i in transform.get_indexes(data)]
    return transform(results)


def test_images_without_a_mosaic_stay_as_they_are(data):
    out = mixed(MosaicMixUp((64, 64), mosaic_prob=0.0), data)
    np.testing.assert_array_equal(out["img"], sample(1)["img"])
    assert "mix_results" not in out


def test_a_mosaic_is_of_four_images_and_its_size(data):
    transform = MosaicMixUp((64, 64), 1.0, 0.0, scaling_ratio_range=(1.0, 1.0))
    out = mixed(transform, data)
    assert out["img"].shape == (64, 64, 3)
    assert len(out["gt_bboxes"]) == len(out["gt_bboxes_labels"]) <= 4
    packed = PackDetInputs(meta_keys=())(out)
    assert packed["inputs"].shape == (3, 64, 64)


def test_mixup_follows_a_mosaic_only(data):
    never = [mixed(MosaicMixUp((64, 64), 0.0, 1.0), data, seed) for seed in range(5)]
    assert all(out["img"].shape == (40, 48, 3) for out in never)
    alone, both = (mixed(MosaicMixUp((64, 64), 1.0, chance), data, 3) for chance in (0.0, 1.0))
    assert both["img"].shape[2] == 3 and len(both["gt_bboxes"]) >= len(alone["gt_bboxes"])
    assert both["img"].shape != alone["img"].shape or not np.array_equal(both["img"], alone["img"])


@pytest.mark.parametrize(("epoch", "stopped"), [(0, False), (1, False), (2, True), (7, True)])
def test_mixing_ends_at_its_epoch_and_after_resuming_behind_it(epoch, stopped):
    inner = SimpleNamespace(keys=None)
    inner.update_skip_type_keys = lambda keys: setattr(inner, "keys", keys)
    loader = SimpleNamespace(dataset=SeededDataset(inner), _iterator="running")
    logger = SimpleNamespace(info=lambda message: None)
    runner = SimpleNamespace(epoch=epoch, train_dataloader=loader, logger=logger)
    MixingStopHook(epoch=2).before_train_epoch(runner)
    assert (inner.keys == ("MosaicMixUp",)) is stopped
    assert (loader._iterator is None) is stopped


def test_pipelines_can_be_exchanged_behind_seeds():
    inner = SimpleNamespace(pipeline="before")
    SeededDataset(inner).pipeline = "after"
    assert inner.pipeline == "after"
