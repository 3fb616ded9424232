"""Resuming goes on where a run broke off."""

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
from visattn.zoo.checkpoint import CheckpointError

TRAIN = Path(visattn.__file__).parent / "tools" / "train.py"


class Recorder(Hook):
    """Lists the images that the model was trained on."""

    def __init__(self):
        self.paths = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.paths += data_batch["paths"]


def test_images_of_an_interrupted_epoch_come_once(train):
    before, after = Recorder(), Recorder()
    one_epoch = {"train_cfg.max_epochs": 1}
    train("run", one_epoch, stop_before=2, hooks=[before])
    train("run", one_epoch, hooks=[after], resume=True)
    assert (len(before.paths), len(after.paths)) == (8, 28)
    assert len({*before.paths, *after.paths}) == 36


def test_weights_alone_cannot_be_resumed(train, tmp_path):
    runner = train("run", {"train_cfg.max_epochs": 1})
    weights = tmp_path / "weights.pth"
    torch.save(runner.bare_model.backbone.state_dict(), weights)
    with pytest.raises(CheckpointError, match="cannot be resumed.*load_from"):
        train("other", {"load_from": str(weights)}, resume=True)


@pytest.mark.slow
def test_killed_run_resumes_from_its_last_checkpoint(classification_config, tmp_path):
    work_dir = tmp_path / "killed"
    command = [sys.executable, str(TRAIN), str(classification_config), "--work-dir", str(work_dir)]
    command += ["--cfg-options", "default_hooks.checkpoint.by_epoch=False", "log_level=INFO"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    record = work_dir / "last_checkpoint"
    while not (record.exists() and int(re.search(r"iter_(\d+)", record.read_text())[1]) >= 3):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = torch.load(record.read_text(), weights_only=True)["meta"]["iter"]
    assert 3 <= done < 18

    resumed = subprocess.run([*command, "--resume"], env=env, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"iter: {done}" in resumed.stdout + resumed.stderr
    assert torch.load(work_dir / "iter_18.pth", weights_only=True)["meta"]["iter"] == 18
