"""Checkpoints that cannot or must not be read are named; what does not fit is never loaded."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from visattn.zoo.checkpoint import CheckpointError, load_checkpoint, read_state_dict


class RunsCode:
    """A pickle of this would execute a command when read by a careless loader."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (self.mark,)


@pytest.fixture
def linear():
    return torch.nn.Linear(3, 2)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_wrappers_are_opened(linear, tmp_path, wrapper):
    weights = linear.state_dict()
    torch.save({wrapper: weights, "epoch": 3} if wrapper else weights, tmp_path / "a.pth")
    assert read_state_dict(tmp_path / "a.pth").keys() == weights.keys()


def test_raw_weights_come_before_averaged_ones(linear, tmp_path):
    averaged = {key: value + 1 for key, value in linear.state_dict().items()}
    torch.save({"model": linear.state_dict(), "model_ema": averaged}, tmp_path / "a.pth")
    torch.testing.assert_close(read_state_dict(tmp_path / "a.pth")["bias"], linear.bias.data)


def test_options_and_numbers_of_training_scripts_are_read(linear, tmp_path):
    extra = {"args": argparse.Namespace(lr=1.0), "max_accuracy": np.float64(81.4)}
    torch.save({"model": linear.state_dict(), **extra}, tmp_path / "a.pth")
    assert load_checkpoint(linear, tmp_path / "a.pth").is_whole


def test_safetensors(linear, tmp_path):
    save_file(linear.state_dict(), tmp_path / "a.safetensors")
    assert load_checkpoint(torch.nn.Linear(3, 2), tmp_path / "a.safetensors").is_whole


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at .*nowhere.pth"):
        read_state_dict(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, -10])
def test_truncated_file(linear, tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    (torch.save if suffix == ".pth" else save_file)(linear.state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="cut short or no checkpoint"):
        read_state_dict(path)


def test_a_text_file_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pth").write_text("<html>404 not found</html>")
    with pytest.raises(CheckpointError, match="cut short or no checkpoint"):
        read_state_dict(tmp_path / "a.pth")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    mark = tmp_path / "executed"
    torch.save({"model": RunsCode(mark)}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="would run code"):
        read_state_dict(tmp_path / "evil.pth")
    assert not mark.exists()


def test_no_weights_inside(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds no weights; its entries are \['epoch'\]"):
        read_state_dict(tmp_path / "a.pth")


def test_a_foreign_checkpoint_changes_nothing(linear, tmp_path):
    torch.save(torch.nn.Linear(4, 2).state_dict() | {"other": torch.zeros(1)}, tmp_path / "a.pth")
    before = linear.weight.clone()
    with pytest.raises(CheckpointError, match=r"1 matched, 0 missing, 1 unexpected, 1 reshaped"):
        load_checkpoint(linear, tmp_path / "a.pth")
    torch.testing.assert_close(linear.weight, before)


def test_not_strict_takes_what_fits(linear, tmp_path):
    other = torch.nn.Linear(4, 2)
    torch.save(other.state_dict(), tmp_path / "a.pth")
    report = load_checkpoint(linear, tmp_path / "a.pth", strict=False)
    assert report.reshaped == (("weight", (2, 4), (2, 3)),)
    torch.testing.assert_close(linear.bias, other.bias)
