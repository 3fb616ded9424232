"""A recipe on a user's own folder and classes."""

from pathlib import Path

import pytest
from mmengine.config import Config

import visattn
from visattn.zoo.config import load_config
from visattn.zoo.data.own import apply_own_data
from visattn.zoo.errors import ConfigError

CONFIGS = Path(visattn.__file__).parent / "configs"
RECIPES = {
    "classification": "classification/nat/nat-mini_8xb128_in1k.py",
    "detection": "detection/nat/mask-rcnn_nat-mini_fpn_3x_coco.py",
    "panoptic": "detection/dinat/mask2former_dinat-large_100e_coco-panoptic.py",
    "instance": "detection/dinat/mask2former_dinat-large_100e_coco-instance.py",
    "segmentation": "segmentation/nat/upernet_nat-mini_160k_ade20k-512x512.py",
}


@pytest.fixture
def own(tmp_path):
    """Reads a recipe with data of one's own on top."""

    def read(task: str, **own_data):
        path = tmp_path / "mine.py"
        path.write_text(
            f"_base_ = {str(CONFIGS / RECIPES[task])!r}\nown_data = dict(**{own_data})\n"
        )
        return load_config(path)

    return read


def test_folder_replaces_the_recipes_everywhere(own):
    cfg = own("detection", data_root="/mine")
    for split in ("train", "val", "test"):
        assert cfg[f"{split}_dataloader"].dataset.data_root == "/mine/"
    assert cfg.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json"
    assert cfg.val_evaluator.ann_file == "/mine/annotations/instances_val2017.json"
    assert cfg.test_evaluator.ann_file == "/mine/annotations/instances_val2017.json"


def test_folder_of_folders(own):
    cfg = own("classification", data_root="mine/")
    assert cfg.train_dataloader.dataset.data_root == "mine/train"
    assert cfg.val_dataloader.dataset.data_root == "mine/val"


@pytest.mark.parametrize("task", ["detection", "segmentation", "instance"])
def test_heads_and_data_sets_have_the_classes(own, task):
    cfg = own(task, classes=("cat", "dog"))
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        assert dataset.metainfo == {"classes": ("cat", "dog")}
    if task == "detection":
        assert cfg.model.roi_head.bbox_head.num_classes == 2
        assert cfg.model.roi_head.mask_head.num_classes == 2
    elif task == "segmentation":
        assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 2
    else:
        assert cfg.model.panoptic_head.num_things_classes == 2
        assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0, 1.0, 0.1]


def test_classifier_has_the_classes(own):
    cfg = own("classification", classes=("cat", "dog"))
    assert cfg.model.backbone.num_classes == 2
    assert cfg.train_dataloader.dataset.classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("task", "own_data", "message"),
    [
        ("detection", {"classes": "cat"}, "classes must be names"),
        ("panoptic", {"classes": ("cat",)}, "num_things_classes"),
        ("detection", {"data_rot": "x"}, "did you mean 'data_root'"),
    ],
)
def test_mistakes_are_named(own, task, own_data, message):
    with pytest.raises(ConfigError, match=message):
        own(task, **own_data)


def test_data_sets_without_a_common_folder_are_named():
    loader = {"dataset": {"datasets": [{"data_root": "/a"}, {"data_root": "b"}]}}
    with pytest.raises(ConfigError, match="give each data set its data_root"):
        apply_own_data(Config({"train_dataloader": loader}), data_root="mine")
