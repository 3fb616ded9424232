"""Detectors and segmentors resume, train in pairs, in mixed precision, averaged and recomputed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import visattn
from visattn.tools import train as train_tool
from visattn.zoo.config import load_config
from visattn.zoo.training.runner import build_runner

TRAIN = Path(visattn.__file__).parent / "tools" / "train.py"
pytestmark = pytest.mark.heavy

TASKS = ["detection", "segmentation"]
# Three steps of two images in an epoch.
SCHEDULE = """
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(type="{loop}", {length}, val_interval=100)
val_dataloader = val_evaluator = val_cfg = None
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1))
visualizer = dict(vis_backends=[])
"""
EPOCHS = SCHEDULE.format(loop="ResumableEpochTrainLoop", length="max_epochs=2")
ITERATIONS = SCHEDULE.format(loop="ResumableIterTrainLoop", length="max_iters=6")
LOOPS = {"detection": EPOCHS, "segmentation": ITERATIONS}


@pytest.fixture
def train(dense_config, tmp_path):
    """Trains a small model for six steps, with overrides by dotted name; gives the runner."""

    def run(task: str, name: str = "run", resume: bool = False, more: str = "", **options):
        path, _ = dense_config(task, LOOPS[task] + more)
        cfg = load_config(path, options)
        cfg.work_dir, cfg.resume = str(tmp_path / name), resume
        runner = build_runner(cfg)
        runner.train()
        return runner

    return run


def read(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("task", TASKS)
def test_killed_run_ends_as_the_uninterrupted_one(task, dense_config, tmp_path):
    """Killed within the second epoch, wherever the last checkpoint is."""
    path, _ = dense_config(task, LOOPS[task])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def command(name: str, *switches: str) -> list[str]:
        return [
            sys.executable,
            str(TRAIN),
            str(path),
            "--work-dir",
            str(tmp_path / name),
            *switches,
        ]

    whole = subprocess.run(command("whole"), env=env, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command("part"), env=env, **quiet)
    record = tmp_path / "part" / "last_checkpoint"
    while not (record.exists() and int(re.search(r"iter_(\d+)", record.read_text())[1]) >= 4):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = subprocess.run(command("part", "--resume"), env=env, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    a, b = (read(tmp_path / name / "iter_6.pth") for name in ("whole", "part"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_train_one_model(task, dense_config, tmp_path):
    path, _ = dense_config(task, LOOPS[task])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    switches = ["--launcher", "pytorch", "--work-dir", str(tmp_path / "pair")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*launch, str(TRAIN), str(path), *switches, "--cfg-options", "log_level=INFO"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "GPU number: 2" in run.stdout
    last = sorted((tmp_path / "pair").glob("iter_*.pth"))[-1]
    assert all(value.isfinite().all() for value in read(last).values())


@pytest.mark.parametrize("task", TASKS)
def test_mixed_precision_trains(task, train):
    options = {"optim_wrapper.type": "AutocastOptimWrapper", "optim_wrapper.dtype": "bfloat16"}
    runner = train(task, **options)
    losses = runner.message_hub.get_scalar("train/loss").data[0]
    assert len(losses) == 6 and torch.tensor(losses).isfinite().all()
    assert all(p.dtype == torch.float32 for p in runner.bare_model.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_average_of_weights_is_saved_with_them(task, train, tmp_path):
    train(task, more='custom_hooks = [dict(type="ModelEmaHook", decay=0.5)]\n')
    checkpoint = torch.load(tmp_path / "run" / "iter_6.pth", weights_only=True)
    average, raw = checkpoint["state_dict"], checkpoint["ema_state_dict"]
    learned = [n for n in average if n.endswith("weight") and average[n].is_floating_point()]
    assert any(not torch.equal(average[n], raw[f"module.{n}"]) for n in learned)


@pytest.mark.parametrize("task", TASKS)
def test_activation_checkpointing_gives_the_same_weights(task, train):
    plain = train(task, "plain").bare_model.state_dict()
    recomputed = train(task, "recomputed", **{"model.backbone.with_cp": True})
    for name, value in recomputed.bare_model.state_dict().items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_command_line_trains(task, dense_config, tmp_path):
    path, _ = dense_config(task, LOOPS[task])
    assert train_tool.main([str(path), "--work-dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "iter_6.pth").is_file()
