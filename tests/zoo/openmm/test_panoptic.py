"""Panoptic segmentation without panopticapi, and panoptic Cityscapes."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from visattn.zoo.openmm import panopticapi
from visattn.zoo.registry import register_all

register_all("mmdet")


def test_ids_survive_as_colours():
    ids = np.array([[0, 1, 255], [256, 65535, 2**24 - 1]])
    colours = panopticapi.id2rgb(ids)
    assert colours.dtype == np.uint8
    assert colours[1, 0].tolist() == [0, 1, 0]
    np.testing.assert_array_equal(panopticapi.rgb2id(colours), ids)


CATEGORIES = {1: {"isthing": 1}, 2: {"isthing": 1}, 3: {"isthing": 0}, 4: {"isthing": 0}}


def counts():
    stat = panopticapi.PQStat()
    stat[1].tp, stat[1].iou, stat[1].fp, stat[1].fn = 2, 1.5, 1, 3
    stat[3].tp, stat[3].iou = 1, 0.6
    stat[4].fn = 2
    return stat


def test_quality_is_segmentation_times_recognition():
    _, each = counts().pq_average(CATEGORIES, None)
    assert each[1] == pytest.approx({"pq": 1.5 / 4, "sq": 0.75, "rq": 0.5})
    assert each[1]["pq"] == pytest.approx(each[1]["sq"] * each[1]["rq"])


@pytest.mark.parametrize(
    ("isthing", "expected", "count"),
    [(None, (0.375 + 0.6 + 0) / 3, 3), (True, 0.375, 1), (False, 0.3, 2)],
)
def test_mean_is_over_categories_that_occur(isthing, expected, count):
    mean, _ = counts().pq_average(CATEGORIES, isthing)
    assert mean["pq"] == pytest.approx(expected)
    assert mean["n"] == count


def test_sums_add_up():
    stat = counts()
    stat += counts()
    assert (stat[1].tp, stat[1].iou, stat[1].fp, stat[1].fn) == (4, 3.0, 2, 6)


def test_a_second_installation_changes_nothing():
    import panopticapi as installed

    assert panopticapi.install() == (installed.__file__ == panopticapi.__file__)


@pytest.fixture
def cityscapes(tmp_path):
    """One image: road above, two cars below, as csCreatePanopticImgs writes it."""
    ids = np.full((32, 64), 7, np.int64)
    ids[16:, :20], ids[16:, 20:] = 26000, 26001
    name = "aachen_000000_000019"
    (tmp_path / "img/aachen").mkdir(parents=True)
    (tmp_path / "seg").mkdir()
    Image.new("RGB", (64, 32)).save(tmp_path / f"img/aachen/{name}_leftImg8bit.png")
    colours = panopticapi.id2rgb(ids)
    Image.fromarray(colours).save(tmp_path / f"seg/{name}_gtFine_panoptic.png")

    def segment(id_, category, box):
        area = int((ids == id_).sum())
        return {"id": id_, "category_id": category, "area": area, "bbox": box, "iscrowd": 0}

    from visattn.zoo.openmm.cityscapes import STUFF, THINGS

    record = {
        "images": [
            {
                "id": name,
                "width": 64,
                "height": 32,
                "file_name": f"{name}_gtFine_leftImg8bit.png",
            }
        ],
        "annotations": [
            {
                "image_id": name,
                "file_name": f"{name}_gtFine_panoptic.png",
                "segments_info": [
                    segment(7, 7, [0, 0, 64, 16]),
                    segment(26000, 26, [0, 16, 20, 16]),
                    segment(26001, 26, [20, 16, 44, 16]),
                ],
            }
        ],
        # In the files the stuff comes first: its ids are lower.
        "categories": [
            {"id": i, "name": label, "isthing": int(label in THINGS)}
            for i, label in [*zip(range(7, 18), STUFF, strict=True), *enumerate(THINGS, 24)]
        ],
    }
    (tmp_path / "train.json").write_text(json.dumps(record))
    return tmp_path


def dataset(root):
    from mmdet.registry import DATASETS

    init_default_scope("mmdet")
    return DATASETS.build(
        {
            "type": "CityscapesPanopticDataset",
            "ann_file": str(root / "train.json"),
            "data_prefix": {"img": str(root / "img"), "seg": str(root / "seg")},
            "pipeline": [
                {"type": "LoadImageFromFile"},
                {"type": "LoadPanopticAnnotations"},
                {
                    "type": "PackDetInputs",
                    "meta_keys": ["img_id", "img_path", "ori_shape", "seg_map_path",
                                  "segments_info"],
                },
            ],
        }
    )  # fmt: skip


def test_cityscapes_is_read_with_things_first(cityscapes):
    sample = dataset(cityscapes)[0]["data_samples"]
    labels = sample.gt_sem_seg.sem_seg[0]
    assert labels[0, 0] == 8  # road, the first kind of stuff
    assert labels[31, 0] == labels[31, 63] == 2  # cars
    assert sample.gt_instances.labels.tolist() == [2, 2]
    assert sample.gt_instances.masks.masks.sum((1, 2)).tolist() == [320, 704]


@pytest.mark.parametrize(("shift", "quality"), [(0, 100.0), (12, 50.0)])
def test_cityscapes_is_rated(cityscapes, tmp_path, shift, quality):
    """With the border between the cars moved by 12, the smaller one is not found any more."""
    from mmdet.registry import METRICS

    data = dataset(cityscapes)
    sample = data[0]["data_samples"].to_dict()
    predicted = torch.full((1, 32, 64), 8)
    predicted[:, 16:, : 20 - shift] = 2 + 1000
    predicted[:, 16:, 20 - shift :] = 2 + 2000
    sample["pred_panoptic_seg"] = {"sem_seg": predicted}
    metric = METRICS.build(
        {
            "type": "CocoPanopticMetric",
            "seg_prefix": str(cityscapes / "seg"),
            "outfile_prefix": str(tmp_path / "out/results"),
            "nproc": 1,
        }
    )
    metric.dataset_meta = data.metainfo
    metric.process({}, [sample])
    results = metric.evaluate(1)
    assert results["coco_panoptic/PQ_st"] == pytest.approx(100.0)
    if shift == 0:
        assert results["coco_panoptic/PQ"] == pytest.approx(quality)
    else:
        assert results["coco_panoptic/PQ_th"] < quality
