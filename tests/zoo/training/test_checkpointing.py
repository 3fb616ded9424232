"""Checkpoints are whole or absent, and load without running code."""

import errno
import os
from pathlib import Path

import pytest
import torch

from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.errors import CheckpointWriteError
from visattn.zoo.training.checkpointing import AtomicLocalBackend

BEST = {
    "default_hooks__checkpoint__save_best": "accuracy/top1",
    "default_hooks__checkpoint__max_keep_ckpts": 1,
    "default_hooks__checkpoint__by_epoch": True,
}


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


def test_everything_in_a_checkpoint_is_plain(recipe):
    runner = recipe.train("work", custom_hooks=[{"type": "ModelEmaHook"}], **BEST)
    files = sorted(Path(runner.work_dir).glob("*.pth"))
    assert [file.name.partition("_")[0] for file in files] == ["best", "epoch"]
    for file in files:
        assert torch.load(file, weights_only=True)["meta"]["iter"] > 0


def test_only_the_newest_checkpoints_are_kept(recipe):
    runner = recipe.train("work", default_hooks__checkpoint__max_keep_ckpts=2)
    names = {path.name for path in Path(runner.work_dir).glob("iter_*.pth")}
    assert names == {"iter_7.pth", "iter_8.pth"}
    assert (Path(runner.work_dir) / "last_checkpoint").read_text().endswith("iter_8.pth")


def test_full_disk_leaves_the_old_file(tmp_path, full_disk):
    target = tmp_path / "weights.pth"
    target.write_bytes(b"old")
    full_disk(0)
    with pytest.raises(CheckpointWriteError, match=r"weights.pth \(No space left.*--resume"):
        AtomicLocalBackend().put(b"new", target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_during_training_leaves_the_last_good_checkpoint(recipe, full_disk, monkeypatch):
    # Each checkpoint syncs file and folder, and those of the record of the last one.
    full_disk(3 * 4)
    with pytest.raises(CheckpointWriteError):
        recipe.train("work", default_hooks__checkpoint__max_keep_ckpts=1)
    monkeypatch.undo()
    assert [path.name for path in (recipe.folder / "work").glob("iter_*")] == ["iter_3.pth"]
    assert recipe.train("work", resume=True).iter == 8


def test_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointWriteError, match="cannot make the folder .*file"):
        AtomicLocalBackend().put(b"new", tmp_path / "file" / "weights.pth")


def test_pickle_with_code_is_refused(recipe):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(recipe.folder / "sprung"),)

    path = recipe.folder / "trap.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": Trap()}, path)
    with pytest.raises(CheckpointError, match="would run code"):
        recipe.train("work", load_from=str(path))
    assert not (recipe.folder / "sprung").exists()


def test_checkpoint_of_another_model_is_refused(recipe):
    runner = recipe.train("work")
    last = (Path(runner.work_dir) / "last_checkpoint").read_text()
    with pytest.raises(CheckpointError, match="does not fit"):
        recipe.train("other", load_from=last, model__backbone__num_classes=4)


def test_moved_run_resumes(recipe):
    recipe.train("work", stop_before=3)
    (recipe.folder / "work").rename(recipe.folder / "moved")
    resumed = recipe.train("moved", resume=True)
    assert resumed.iter == 8
    assert not (recipe.folder / "work").exists()
