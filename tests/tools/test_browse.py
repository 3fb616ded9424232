from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from timm.data import Mixup

from visattn.tools.browse import (
    CELL,
    build_preprocessing,
    denormalise,
    labelled,
    main,
    with_instances,
    with_semantic,
)
from visattn.zoo.config import load_config

CLASSES = ("cat", "dog", "owl")
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def config(tmp_path):
    """A configuration over twelve images, four a class, each of one colour."""
    for label, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            colour = [0, 0, 0]
            colour[label] = 200
            Image.new("RGB", (40, 40), tuple(colour)).save(
                tmp_path / "images" / name / f"{index}.png"
            )
    loader = {
        "batch_size": 4,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        "collate_fn": {"type": "default_collate"},
        "dataset": {
            "type": "ImageFolder",
            "data_root": str(tmp_path / "images"),
            "pipeline": [{"type": "TimmEvalTransform", "img_size": 32}],
        },
    }
    model = {"type": "ImageClassifier", "backbone": {"model_name": "resnet10t", "num_classes": 3}}
    path = tmp_path / "config.py"
    cfg = Config({"default_scope": "visattn", "model": model, "train_dataloader": loader})
    path.write_text(cfg.pretty_text)
    return str(path)


def test_writes_a_grid(config, tmp_path):
    out = tmp_path / "made" / "samples.png"
    assert main([config, "--number", "6", "--out", str(out)]) == 0
    shown = np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3)
    seen = {tuple(colour) for colour in np.unique(shown, axis=0)}
    assert {(200, 0, 0), (0, 200, 0), (0, 0, 200)} <= seen


def test_a_folder_gets_a_file_named_after_the_config(config, tmp_path):
    assert main([config, "--out", str(tmp_path / "made")]) == 0
    assert (tmp_path / "made" / "config_train.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "missing.py"),
        (["{config}", "--split", "val"], "no val_dataloader"),
        (["{config}", "--number", "0"], "at least 1"),
    ],
)
def test_mistakes_are_named(config, arguments, message, capsys):
    assert main([argument.format(config=config) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_denormalising_inverts_the_preprocessor(config):
    preprocessor, _ = build_preprocessing(load_config(config))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    normalised = preprocessor({"inputs": images})["inputs"]
    assert torch.equal(denormalise(normalised, preprocessor), images)


def test_mixed_labels_carry_the_weights_of_the_pixels():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0] = 200
    mixup = Mixup(mixup_alpha=1.0, label_smoothing=0.1, num_classes=3)
    first, second = labelled(images, torch.tensor([0, 2]), CLASSES, mixup)
    weight = round(first.image.float().mean().item() / 2)
    by_name = dict(part.rsplit(" ", 1) for part in first.title.split(" + "))
    assert abs(int(by_name["cat"].rstrip("%")) - weight) <= 1
    assert set(by_name) == {"cat", "owl"}
    assert abs(round(second.image.float().mean().item() / 2) - (100 - weight)) <= 1


def test_semantic_classes_are_drawn_in_their_colours():
    image = torch.zeros(3, CELL, CELL, dtype=torch.uint8)
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, :, 4:], labels[0, 7] = 1, 255
    palette = [(100, 0, 0), (0, 100, 0)]
    shown, title = with_semantic(image, PixelData(data=labels).data, CLASSES, palette)
    assert title == "cat, dog, ignored"
    assert shown[:, 10, 10].tolist() == [50, 0, 0]
    assert shown[:, 10, -10].tolist() == [0, 50, 0]
    assert shown[0, -5, 10] == 127


def test_boxes_are_drawn_where_the_objects_are():
    image = torch.zeros(3, CELL, CELL, dtype=torch.uint8)
    instances = InstanceData(
        bboxes=torch.tensor([[20.0, 40.0, 60.0, 80.0]]), labels=torch.tensor([1])
    )
    shown, title = with_instances(image, instances, CELL / 160, CLASSES)
    assert title == "1 object"
    on_edge, inside = shown[:, 120, 40], shown[:, 120, 80]
    assert on_edge.any() and not inside.any()


def test_an_image_without_objects_says_so():
    image = torch.zeros(3, CELL, CELL, dtype=torch.uint8)
    instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    assert with_instances(image, instances, 1.0, CLASSES) == (image, "no objects")


@pytest.mark.parametrize(
    "recipe",
    [
        "detection/biformer/mask-rcnn_biformer-micro_embedded.py",
        "segmentation/biformer/upernet_biformer-micro_embedded.py",
    ],
)
def test_scenes_are_drawn_with_their_annotations(recipe, embedded_root, tmp_path, monkeypatch):
    monkeypatch.chdir(embedded_root)
    out = tmp_path / "scenes.png"
    assert main([str(CONFIGS / recipe), "--number", "2", "--out", str(out)]) == 0
    assert np.asarray(Image.open(out).convert("RGB")).std() > 20


def test_names_do_not_need_a_palette_or_classes():
    image = torch.zeros(3, CELL, CELL, dtype=torch.uint8)
    _, title = with_semantic(image, torch.ones(1, 8, 8, dtype=torch.int64), None, None)
    assert title == "1"
