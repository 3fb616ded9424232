from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visattn.tools.visualize import build_model, main, resize
from visattn.zoo.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
DETECTOR = str(CONFIGS / "detection/biformer/mask-rcnn_biformer-micro_embedded.py")
KWARGS = {
    "depths": (1, 1, 1, 1),
    "embed_dims": (16, 32, 48, 64),
    "head_dim": 16,
    "num_heads_last": 4,
}
SMALL = [f"{key}={value}".replace(" ", "") for key, value in KWARGS.items()]


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)).save(path)
    return str(path)


def test_writes_a_picture(image_file, tmp_path, capsys):
    out = tmp_path / "made" / "routing.png"
    arguments = ["--query", "100,20", "--img-size", "64", "--out", str(out)]
    assert main(["biformer_tiny", image_file, *arguments, "--model-kwargs", *SMALL]) == 0
    assert np.asarray(Image.open(out).convert("RGB")).std() > 10
    # Pixel (100, 20) of 120 x 80 is in row 1 and column 5 of 7 x 7 regions.
    assert "stages.0.blocks.0.attn: region 12 looks at" in capsys.readouterr().out


def test_shows_the_stages_asked_for(image_file, tmp_path, capsys):
    out = str(tmp_path / "routing.png")
    arguments = ["--stage", "2", "--img-size", "64", "--out", out, "--model-kwargs", *SMALL]
    assert main(["biformer_tiny", image_file, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "stages.1.blocks.0.attn" in printed and "stages.0" not in printed


def test_shows_other_attention_than_routing(image_file, tmp_path, capsys):
    out = str(tmp_path / "attention.png")
    small = ["depths=(1,1,1,1)", "embed_dim=32"]
    arguments = ["nat_mini", image_file, "--img-size", "64", "--out", out, "--model-kwargs", *small]
    assert main(arguments) == 0
    assert "stages.3.blocks.0.attn: attention is strongest at row" in capsys.readouterr().out


def test_takes_a_checkpoint_with_other_classes(tmp_path):
    trained = build_model("biformer_tiny", model_kwargs={**KWARGS, "num_classes": 7})
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "model.pth")
    model = build_model("biformer_tiny", str(tmp_path / "model.pth"), KWARGS)
    assert torch.equal(model.stem.conv1.weight, trained.stem.conv1.weight)


def test_takes_a_classification_config(image_file, tmp_path, capsys):
    config = str(CONFIGS / "classification/biformer/biformer-micro_embedded.py")
    out = str(tmp_path / "routing.png")
    assert main([config, image_file, "--img-size", "64", "--out", out]) == 0
    assert "stages.0.blocks.0.attn: region" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DETECTOR, "{image}"], "describes a MaskRCNN"),
        (["biformer_tinny", "{image}"], "biformer_tinny"),
        (["biformer_tiny", "missing.png"], "missing.png"),
        (["biformer_tiny", "{image}", "--checkpoint", "missing.pth"], "missing.pth"),
        (["biformer_tiny", "{image}", "--img-size", "16"], "got 16"),
        (["biformer_tiny", "{image}", "--stage", "4"], "stage 4"),
        (["biformer_tiny", "{image}", "--query", "500,3"], "outside the image"),
        (["resnet18", "{image}"], "ResNet"),
        (["vit_tiny_patch16_224", "{image}", "--img-size", "64"], "dynamic_img_size=True"),
    ],
)
def test_mistakes_are_named(image_file, arguments, message, capsys):
    assert main([argument.format(image=image_file) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


def test_sides_become_multiples_of_the_stride():
    assert resize(Image.new("RGB", (300, 200)), 64).size == (96, 64)


def test_a_side_below_the_stride_is_refused():
    with pytest.raises(UserError, match="at least 32"):
        resize(Image.new("RGB", (300, 200)), 31)
