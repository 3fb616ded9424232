"""Resuming ends where an uninterrupted run ends, whenever it broke off."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

import visattn

TRAIN = Path(visattn.__file__).parent / "tools" / "train.py"
MIXUP = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1}


def assert_same_weights(one, other):
    for (name, mine), theirs in zip(
        one.bare_model.state_dict().items(), other.bare_model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("stop_before", [1, 3, 4, 7])
def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(recipe, stop_before):
    changes = {
        "model__mixup": MIXUP,
        "model__data_preprocessor": {"random_erasing": {"probability": 0.5, "mode": "pixel"}},
        "custom_hooks": [{"type": "ModelEmaHook", "decay": 0.9}],
    }
    whole = recipe.train("whole", **changes)
    recipe.train("broken", stop_before=stop_before, **changes)
    resumed = recipe.train("broken", resume=True, **changes)
    assert resumed.iter == whole.iter == 8
    assert_same_weights(resumed, whole)
    ema_hooks = [
        next(hook for hook in runner.hooks if type(hook).__name__ == "ModelEmaHook")
        for runner in (resumed, whole)
    ]
    for mine, theirs in zip(*(hook.ema_model.parameters() for hook in ema_hooks), strict=True):
        assert torch.equal(mine, theirs)


def test_number_of_loader_processes_does_not_matter(recipe):
    alone = recipe.train("alone")
    recipe.train("helped", stop_before=2, train_dataloader__num_workers=2)
    helped = recipe.train("helped", resume=True, train_dataloader__num_workers=2)
    assert_same_weights(helped, alone)


def test_images_of_an_interrupted_epoch_come_once(recipe):
    before, after = [], []
    recipe.train("work", stop_before=2, train_cfg__max_epochs=1, hooks=[_Recorder(before)])
    recipe.train("work", resume=True, train_cfg__max_epochs=1, hooks=[_Recorder(after)])
    assert len(before) == len(after) == 8
    assert len({*before, *after}) == 16


class _Recorder(Hook):
    """Lists the images that the model was trained on."""

    def __init__(self, seen):
        self.seen = seen

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen += data_batch["paths"]


def test_resuming_nothing_starts_from_the_beginning(recipe):
    assert recipe.train("work", resume=True).iter == 8


def test_resuming_with_another_batch_size_is_refused(recipe):
    from visattn.zoo.errors import DataError

    recipe.train("work", stop_before=3)
    with pytest.raises(DataError, match="had 4 iterations an epoch, this one has 9"):
        recipe.train("work", resume=True, train_dataloader__batch_size=2)


def test_weights_alone_cannot_be_resumed(recipe):
    from visattn.zoo.checkpoint import CheckpointError

    runner = recipe.train("work")
    weights = recipe.folder / "weights.pth"
    torch.save(runner.bare_model.backbone.state_dict(), weights)
    with pytest.raises(CheckpointError, match="cannot be resumed.*load_from"):
        recipe.train("other", resume=True, load_from=str(weights))


def test_killed_run_resumes_from_its_last_checkpoint(recipe):
    work_dir = recipe.folder / "killed"
    command = [sys.executable, str(TRAIN), str(recipe.path), "--work-dir", str(work_dir)]
    command += ["--cfg-options", "train_cfg.max_epochs=10", "log_level=INFO"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    record = work_dir / "last_checkpoint"
    while not (record.exists() and int(re.search(r"iter_(\d+)", record.read_text())[1]) >= 6):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = Path(record.read_text())
    done = torch.load(last, weights_only=True)["meta"]["iter"]
    assert 6 <= done < 40

    resumed = subprocess.run([*command, "--resume"], env=env, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"iter: {done}" in resumed.stdout + resumed.stderr
    assert torch.load(work_dir / "iter_40.pth", weights_only=True)["meta"]["iter"] == 40
