"""Checkpoints are whole or absent, and load without running code."""

import errno
import os
from pathlib import Path

import pytest
import torch

from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.errors import CheckpointWriteError
from visattn.zoo.training.checkpointing import AtomicLocalBackend


@pytest.fixture
def full_disk(monkeypatch):
    """Lets the n-th write to disk fail for want of space."""

    def fill_after(writes: int) -> None:
        left = iter(range(writes))
        fsync = os.fsync

        def fsync_while_space(descriptor):
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync_while_space)

    return fill_after


def test_everything_in_a_checkpoint_is_plain(make_runner, tmp_path):
    make_runner(
        overrides={
            "custom_hooks": [{"type": "ModelEmaHook"}],
            "default_hooks.checkpoint.save_best": "accuracy/top1",
            "default_hooks.checkpoint.max_keep_ckpts": 1,
        }
    ).train()
    files = sorted((tmp_path / "run").glob("*.pth"))
    assert [file.name.partition("_")[0] for file in files] == ["best", "epoch"]
    for file in files:
        assert torch.load(file, weights_only=True)["meta"]["iter"] > 0


def test_only_the_newest_checkpoints_are_kept(train, tmp_path):
    train("run", {"default_hooks.checkpoint.max_keep_ckpts": 2})
    assert {path.name for path in (tmp_path / "run").glob("iter_*")} == {
        "iter_17.pth",
        "iter_18.pth",
    }
    assert (tmp_path / "run" / "last_checkpoint").read_text().endswith("iter_18.pth")


def test_full_disk_leaves_the_old_file(tmp_path, full_disk):
    target = tmp_path / "weights.pth"
    target.write_bytes(b"old")
    full_disk(0)
    with pytest.raises(CheckpointWriteError, match=r"weights.pth \(No space left.*--resume"):
        AtomicLocalBackend().put(b"new", target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_during_training_leaves_the_last_good_checkpoint(
    train, full_disk, monkeypatch, tmp_path
):
    keep_one = {"default_hooks.checkpoint.max_keep_ckpts": 1}
    # A checkpoint syncs its file and folder; then the record of the last checkpoint does.
    full_disk(3 * 4)
    with pytest.raises(CheckpointWriteError):
        train("run", keep_one)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run").glob("iter_*")] == ["iter_3.pth"]
    assert train("run", keep_one, resume=True).iter == 18


def test_resuming_removes_what_an_interrupted_save_left(train, tmp_path, monkeypatch):
    keep_two = {"default_hooks.checkpoint.max_keep_ckpts": 2}
    monkeypatch.setattr(Path, "unlink", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        train("run", keep_two)
    monkeypatch.undo()
    (tmp_path / "run" / ".iter_4.pth.tmp").touch()
    assert {path.name for path in (tmp_path / "run").glob("*iter_*")} == {
        ".iter_4.pth.tmp",
        "iter_1.pth",
        "iter_2.pth",
        "iter_3.pth",
    }
    train("run", keep_two, resume=True)
    assert {path.name for path in (tmp_path / "run").glob("*iter_*")} == {
        "iter_17.pth",
        "iter_18.pth",
    }


def _interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointWriteError, match="cannot make the folder .*file"):
        AtomicLocalBackend().put(b"new", tmp_path / "file" / "weights.pth")


def test_pickle_with_code_is_refused(train, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "trap.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Trap()}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        train("run", {"load_from": str(path)})
    assert not (tmp_path / "sprung").exists()


def test_checkpoint_of_another_model_is_refused(train, tmp_path):
    train("run", {"train_cfg.max_epochs": 1})
    last = (tmp_path / "run" / "last_checkpoint").read_text()
    with pytest.raises(CheckpointError, match="does not fit"):
        train("other", {"load_from": last, "model.backbone.num_classes": 4})
