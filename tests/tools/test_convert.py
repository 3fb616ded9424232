"""Converting released checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from _official import official_state_dict

import visattn
from visattn.tools import convert
from visattn.zoo.checkpoint import load_checkpoint, read_state_dict

ROOT = Path(visattn.__file__).parent


@pytest.fixture(scope="module")
def official(golden, tmp_path_factory):
    """A checkpoint as the authors save it while training, and what the model then computes."""
    path = tmp_path_factory.mktemp("official") / "biformer_tiny.pth"
    torch.save({"model": golden("biformer_tiny").state_dict, "epoch": 299}, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trip(official, tmp_path, suffix, capsys):
    target = tmp_path / "new" / f"biformer{suffix}"
    assert convert.main([str(official), str(target), "--model", "biformer_tiny"]) == 0
    assert "264 matched, 0 missing" in capsys.readouterr().out
    ours, theirs = (timm.create_model("biformer_tiny") for _ in range(2))
    assert read_state_dict(target).keys() == ours.state_dict().keys()
    ours.load_state_dict(read_state_dict(target))
    load_checkpoint(theirs, official)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def refuse(arguments, message, capsys):
    assert convert.main([str(argument) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_does_not_fit_is_not_written(official, tmp_path, capsys):
    target = tmp_path / "x.pth"
    command = [official, target, "--model", "biformer_tiny", "--num-classes", 7]
    refuse(command, "--num-classes", capsys)
    refuse([official, target, "--model", "biformer_stl"], "does not fit biformer_stl", capsys)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_without_force(official, tmp_path, capsys):
    target = tmp_path / "x.pth"
    target.write_bytes(b"precious")
    refuse([official, target, "--model", "biformer_tiny"], "--force", capsys)
    wrong = [official, target, "--model", "biformer_stl", "--force"]
    refuse(wrong, "nothing was written", capsys)
    assert target.read_bytes() == b"precious"
    arguments = [str(official), str(target), "--model", "biformer_tiny", "--force"]
    assert convert.main(arguments) == 0
    assert len(read_state_dict(target)) == 264


@pytest.mark.parametrize(
    ("source", "target", "model", "message"),
    [
        ("missing.pth", "x.pth", "biformer_tiny", "no checkpoint at"),
        (None, "x.onnx", "biformer_tiny", "must end in"),
        (None, "x.pth", "biformer_tinny", "did you mean biformer_tiny"),
        (None, None, "biformer_tiny", "--dry-run"),
    ],
)
def test_bad_arguments(official, tmp_path, capsys, source, target, model, message):
    command = [tmp_path / source if source else official]
    command += [tmp_path / target] if target else []
    refuse([*command, "--model", model], message, capsys)
    assert not list(tmp_path.iterdir())


def test_the_source_is_never_its_own_target(official, capsys):
    refuse([official, official, "--model", "biformer_tiny", "--force"], "DST is SRC", capsys)


def test_dry_run_only_reports(official, tmp_path, capsys):
    assert convert.main([str(official), "--model", "biformer_tiny", "--dry-run"]) == 0
    assert "264 matched" in capsys.readouterr().out


DETECTION = ROOT / "configs" / "detection" / "_base_"
DETECTOR = """
_base_ = [{models!r}, {datasets!r}]
default_scope = "mmdet"
model = dict(
    backbone=dict(
        model_name="nat_mini", depths=(1, 1, 1, 1), embed_dim=32, norm_outputs="layernorm2d"
    )
)
test_cfg = dict()
"""


@pytest.fixture
def detector(tmp_path):
    """A configuration of a small detector, and a checkpoint of it as mmdet 2 wrote them."""
    from visattn.zoo.config import load_config
    from visattn.zoo.models import build_configured

    path = tmp_path / "detector.py"
    models = str(DETECTION / "models" / "mask-rcnn_fpn_micro.py")
    datasets = str(DETECTION / "datasets" / "embedded_scenes_instance.py")
    path.write_text(DETECTOR.format(models=models, datasets=datasets))
    model = build_configured(load_config(path))
    ours = model.state_dict()
    meta = {"CLASSES": ("cat", "dog"), "PALETTE": np.zeros((2, 3), np.uint8), "epoch": 12}
    torch.save(
        {"meta": meta, "state_dict": official_state_dict(model, "nat")}, tmp_path / "theirs.pth"
    )
    return path, tmp_path / "theirs.pth", ours


def test_detectors_by_their_configuration(detector, tmp_path, capsys):
    config, source, expected = detector
    target = tmp_path / "ours.pth"
    assert convert.main([str(source), str(target), "--model", str(config)]) == 0
    assert f"{len(expected)} matched, 0 missing" in capsys.readouterr().out
    written = torch.load(target, weights_only=False)
    assert written["meta"]["dataset_meta"]["classes"] == ("cat", "dog")
    assert written["state_dict"].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, written["state_dict"][name]), name


def test_other_detectors_are_not_written(detector, tmp_path, capsys):
    config, source, _ = detector
    config.write_text(config.read_text().replace('"nat_mini"', '"nat_base"'))
    refuse([source, tmp_path / "ours.pth", "--model", config], "num_classes of", capsys)
    assert not (tmp_path / "ours.pth").exists()
    refuse([source, tmp_path / "ours.pth", "--model", config, "--num-classes", 3], "edit", capsys)
