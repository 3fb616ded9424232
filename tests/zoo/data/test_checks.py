import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from visattn.zoo.config import load_config
from visattn.zoo.data import embedded
from visattn.zoo.data.checks import (
    check_class_labels,
    check_coco,
    check_dataset,
    check_masks,
    declared_classes,
)
from visattn.zoo.errors import ConfigError, DataError

CLASSES = ("cat", "dog", "owl")
CONFIGS = Path(__file__).parents[3] / "configs"


def coco(**changes):
    """A sound file of two images and 200 objects, with changes."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)],
        "categories": [{"id": 7 + i, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [
            {
                "id": i,
                "image_id": 1 + i % 2,
                "category_id": 7 + i % 3,
                "bbox": [5, 5, 10, 10],
                "segmentation": [[5, 5, 15, 5, 15, 15]],
                "iscrowd": 0,
            }
            for i in range(200)
        ],
    }
    return {**content, **changes}


def with_object(**changes):
    """``coco`` with the first five objects changed: more than are tolerated."""
    content = coco()
    for item in content["annotations"][:5]:
        item.update(changes)
    return content


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def mask(tmp_path):
    def save(pixels, name="mask.png"):
        Image.fromarray(np.asarray(pixels, np.uint8)).save(tmp_path / name)
        return tmp_path / name

    return save


def test_objects_are_counted(write):
    report = check_coco(write(coco()), CLASSES, 3)
    assert report.counts == {"cat": 67, "dog": 67, "owl": 66}
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [50, 5, 10, 10]}, r"object 0 .* outside its image of 40 x 30"),
        ({"bbox": [5, 5, 0, 10]}, "object 0 .* without area"),
        ({"bbox": [5, 5, float("nan"), 10]}, "object 0 .* the box"),
        ({"bbox": None}, "object 0 .* the box None"),
        ({"segmentation": []}, "object 0 .* empty mask"),
        ({"category_id": 99}, "object 0 .* category_id 99"),
        ({"image_id": 99}, "object 0 .* image_id 99"),
    ],
)
def test_faulty_objects_are_named(write, changes, message):
    with pytest.raises(DataError, match=message):
        check_coco(write(with_object(**changes)), CLASSES, 3)


def test_a_few_faulty_objects_are_a_warning(write):
    content = coco()
    content["annotations"][0]["bbox"] = [5, 5, 0, 10]
    (warning,) = check_coco(write(content), CLASSES, 3).warnings
    assert "object 0" in warning


def test_other_number_of_classes_is_named(write):
    with pytest.raises(DataError, match="model has 80 classes .* set num_classes=3"):
        check_coco(write(coco()), CLASSES, 80)


def test_class_that_the_file_lacks_is_named(write):
    with pytest.raises(DataError, match="no category 'fox'; it has cat, dog, owl"):
        check_coco(write(coco()), ("cat", "fox"))


def test_file_without_objects_is_named(write):
    with pytest.raises(DataError, match="instances.json holds no objects"):
        check_coco(write(coco(annotations=[])))


def test_missing_images_are_named(write, tmp_path):
    with pytest.raises(DataError, match="2 of 2 images are missing, such as .*1.png"):
        check_coco(write(coco()), image_dir=tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.json"):
        check_coco(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"cut\.json is no JSON"):
        check_coco(tmp_path / "cut.json")
    (tmp_path / "other.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="annotations, categories"):
        check_coco(tmp_path / "other.json")


def test_classes_that_never_occur_are_a_warning(write):
    content = coco()
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 9]
    assert "1 of 3 classes have no objects: owl" in check_coco(write(content)).warnings


def test_segments_of_panoptic_files_are_counted(write):
    content = coco()
    expected = check_coco(write(content)).counts
    content["annotations"] = [
        {
            "image_id": image["id"],
            "segments_info": [
                {key: value for key, value in item.items() if key != "image_id"}
                for item in content["annotations"]
                if item["image_id"] == image["id"]
            ],
        }
        for image in content["images"]
    ]
    assert check_coco(write(content)).counts == expected
    content["annotations"][0]["segments_info"][0]["category_id"] = 77
    with pytest.raises(DataError, match="category_id 77"):
        check_coco(write(content))


def test_crowds_count_as_ignored(write):
    content = coco()
    for item in content["annotations"][:50]:
        item["iscrowd"] = 1
    assert check_coco(write(content)).ignored == 0.25


def test_pixels_are_counted(mask):
    report = check_masks([mask([[0, 0, 1], [2, 255, 255]])], 3, CLASSES)
    assert report.counts == {"cat": 2, "dog": 1, "owl": 1}
    assert report.ignored == pytest.approx(1 / 3)


def test_reduced_and_mapped_labels(mask):
    path = mask([[0, 1, 2, 3]])
    report = check_masks([path], 2, reduce_zero_label=True, label_map={0: 1, 1: 0, 2: 255})
    assert report.counts == {"0": 1, "1": 1}
    assert report.ignored == 0.5


def test_label_outside_the_classes_is_named(mask):
    with pytest.raises(DataError, match=r"mask\.png holds label 3 on 2 pixels"):
        check_masks([mask([[0, 3, 3]])], 3)


def test_masks_all_ignored_are_named(mask):
    with pytest.raises(DataError, match="no pixel of 1 masks"):
        check_masks([mask([[255, 255]])], 3)


def test_coloured_mask_is_named(mask):
    with pytest.raises(DataError, match=r"mask\.png has 3 channels"):
        check_masks([mask(np.zeros((2, 2, 3)))], 3)


def test_unreadable_mask_is_named(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"cut\.png"):
        check_masks([tmp_path / "cut.png"], 3)


def test_class_labels():
    report = check_class_labels([0, 0, 2], CLASSES)
    assert report.counts == {"cat": 2, "dog": 0, "owl": 1}
    assert report.warnings == ("1 of 3 classes have no images: dog",)


@pytest.mark.parametrize("label", [-1, 3])
def test_class_label_outside_is_named(label):
    with pytest.raises(DataError, match=f"label {label} of image 1"):
        check_class_labels([0, label], CLASSES, 3)


def test_declared_classes_are_found_anywhere():
    model = {"roi_head": {"bbox_head": [{"num_classes": 3}], "mask_head": {"num_classes": 3}}}
    assert declared_classes(model) == 3
    assert declared_classes({"backbone": {}}) is None


def test_disagreeing_heads_are_named():
    model = {"decode_head": {"num_classes": 3}, "auxiliary_head": [{"num_classes": 4}]}
    with pytest.raises(ConfigError, match=r"decode_head.num_classes=3, model.auxiliary_head.0"):
        declared_classes(model)


def test_wrapped_data_sets_are_unwrapped():
    def folder(labels):
        return SimpleNamespace(labels=np.array(labels), metainfo={"classes": CLASSES})

    joined = SimpleNamespace(datasets=[folder([0, 1]), folder([1, 2])])
    report = check_dataset(SimpleNamespace(dataset=joined), {"backbone": {"num_classes": 3}})
    assert report.counts == {"cat": 1, "dog": 2, "owl": 1}


def check_recipe(recipe, root, monkeypatch, **overrides):
    monkeypatch.chdir(root)
    cfg = load_config(CONFIGS / recipe, overrides)
    init_default_scope(cfg.default_scope)
    return check_dataset(DATASETS.build(cfg.train_dataloader.dataset), cfg.model)


def test_objects_of_a_detection_recipe(embedded_root, monkeypatch):
    recipe = "detection/biformer/mask-rcnn_biformer-micro_embedded.py"
    report = check_recipe(recipe, embedded_root, monkeypatch)
    path = embedded_root / "data/embedded/scenes/annotations/instances_train2017.json"
    objects = json.loads(path.read_text())["annotations"]
    assert tuple(report.counts) == embedded.CLASSES
    assert sum(report.counts.values()) == len(objects)


def test_pixels_of_a_segmentation_recipe(embedded_root, monkeypatch):
    recipe = "segmentation/biformer/upernet_biformer-micro_embedded.py"
    report = check_recipe(recipe, embedded_root, monkeypatch)
    assert sum(report.counts.values()) == 6 * embedded.SIZE**2
    assert next(iter(report.counts)) == "background"


def test_recipe_with_too_few_classes_is_named(embedded_root, monkeypatch):
    recipe = "detection/biformer/mask-rcnn_biformer-micro_embedded.py"
    heads = ("bbox_head", "mask_head")
    overrides = {f"model.roi_head.{head}.num_classes": 4 for head in heads}
    with pytest.raises(DataError, match="the model has 4 classes .* read with 10"):
        check_recipe(recipe, embedded_root, monkeypatch, **overrides)
