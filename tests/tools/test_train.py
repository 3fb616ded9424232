"""The command lines that train and test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visattn
from visattn.tools import test as test_tool
from visattn.tools import train as train_tool

ROOT = Path(visattn.__file__).parent
MICRO = ROOT / "configs" / "classification" / "biformer" / "biformer-micro_embedded.py"
VARIANT = """
_base_ = [{micro!r}]
model = dict(backbone=dict(_delete_=True, model_name="test_vit", img_size=32, num_classes=3))
train_dataloader = dict(batch_size=4, dataset=dict(data_root="{data}/train"))
val_dataloader = dict(batch_size=5, dataset=dict(data_root="{data}/val"))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(_delete_=True, type="sgd", lr=0.05))
train_cfg = dict(max_epochs=2)
param_scheduler = dict(T_max=2, warmup=0)
custom_hooks = []
"""


@pytest.fixture
def recipe(tmp_path, request):
    """The embedded recipe with a tiny model, for 24 + 9 images in ``tmp_path / "images"``."""
    data = tmp_path / "images"
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name in ("blue", "green", "red"):
            (data / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data / split / name / f"{number}.png")
    # mmengine keeps the state of a run under the name of its configuration.
    path = tmp_path / f"{request.node.name.translate(str.maketrans('[]', '__'))}.py"
    path.write_text(VARIANT.format(micro=str(MICRO), data=data))
    return path


def run(tool: Path, *args: object, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *([tool] if tool.is_file() else []), *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_trains_tests_and_dumps(recipe, tmp_path):
    work_dir = tmp_path / "work"
    assert train_tool.main([str(recipe), "--work-dir", str(work_dir), "--seed", "3"]) == 0
    (checkpoint,) = work_dir.glob("epoch_2.pth")
    assert torch.load(checkpoint, weights_only=True)["meta"]["seed"] == 3
    assert list(work_dir.rglob("events.out.tfevents*"))

    out = tmp_path / "out" / "predictions.json"
    args = [str(recipe), str(checkpoint), "--work-dir", str(work_dir), "--out", str(out)]
    metrics = test_tool.evaluate(args)
    dump = json.loads(out.read_text())
    assert dump["classes"] == ["blue", "green", "red"]
    confusion = np.array(dump["confusion_matrix"])
    assert confusion.sum(1).tolist() == [3, 3, 3]
    assert np.trace(confusion) / 9 * 100 == pytest.approx(metrics["accuracy/top1"])
    assert dump["per_class"] == pytest.approx((confusion.diagonal() / 3 * 100).tolist())
    for prediction in dump["predictions"]:
        assert Path(prediction["path"]).parent.name == dump["classes"][prediction["label"]]
        assert prediction["top"][0] == [prediction["predicted"], prediction["score"]]
        assert sum(score for _, score in prediction["top"]) == pytest.approx(1)


def test_official_layout_is_tested_without_a_run(recipe, tmp_path):
    import timm

    model = timm.create_model("test_vit", img_size=32, num_classes=3)
    torch.save({"model": model.state_dict()}, tmp_path / "theirs.pth")
    args = [str(recipe), str(tmp_path / "theirs.pth"), "--work-dir", str(tmp_path / "work")]
    assert 0 <= test_tool.evaluate(args)["accuracy/top1"] <= 100


def test_mixed_precision_of_a_recipe_can_be_turned_off():
    wrapper = {"type": "AutocastOptimWrapper", "dtype": "float16", "loss_scale": {}, "optimizer": 1}
    train_tool.set_precision(wrapper, "none")
    assert wrapper == {"type": "OptimWrapper", "optimizer": 1}
    train_tool.set_precision(wrapper, "bf16")
    expected = {"type": "AutocastOptimWrapper", "dtype": "bfloat16", "optimizer": 1}
    assert wrapper == expected


def test_switches_reach_the_configuration(recipe, tmp_path, monkeypatch):
    from visattn.zoo.training import runner

    built = []

    class Recorder:
        def train(self):
            built.append(self.cfg)

    def build_runner(cfg):
        recorder = Recorder()
        recorder.cfg = cfg
        return recorder

    monkeypatch.setattr(runner, "build_runner", build_runner)
    switches = ["--amp", "bf16", "--compile", "--resume", "some.pth", "--launcher", "pytorch"]
    options = ["--cfg-options", "train_dataloader.batch_size=2", "train_cfg.val_interval=7"]
    assert train_tool.main([str(recipe), *switches, *options]) == 0
    (cfg,) = built
    assert cfg.optim_wrapper.type == "AutocastOptimWrapper"
    assert cfg.optim_wrapper.dtype == "bfloat16"
    assert (cfg.compile, cfg.resume, cfg.load_from) == (True, True, "some.pth")
    assert (cfg.launcher, cfg.work_dir) == ("pytorch", f"work_dirs/{recipe.stem}")
    assert (cfg.train_dataloader.batch_size, cfg.train_cfg.val_interval) == (2, 7)


class Trap:
    def __reduce__(self):
        return os.abort, ()


MISTAKES = {
    "config": (["nowhere.py"], {}, "no configuration at nowhere.py"),
    "key": ([], {"train_cfg.max_epoch": 3}, "did you mean 'max_epochs'"),
    "folder": ([], {"train_dataloader.dataset.data_root": "absent"}, "data folder absent does not"),
    "outputs": ([], {"model.backbone.num_classes": 2}, "set model.backbone.num_classes=3"),
    "size": ([], {"train_dataloader.dataset.pipeline.0.img_size": 0}, "image size 0 is impossible"),
    "corrupt": ([], {"train_dataloader.num_workers": 1}, "cannot read image {0}/images/train/red/"),
    "resume": (["--resume", "absent.pth"], {}, "no checkpoint at absent.pth"),
    "truncated": (["--resume", "{0}/truncated.pth"], {}, "truncated.pth (1,000 bytes) is cut"),
    "foreign": (["--resume", "{0}/foreign.pth"], {}, "foreign.pth is no checkpoint of a run"),
    "trap": (["--resume", "{0}/trap.pth"], {}, "would run code from the file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_line(recipe, tmp_path, capsys, mistake):
    torch.save(torch.nn.Linear(99, 99).state_dict(), tmp_path / "foreign.pth")
    whole = (tmp_path / "foreign.pth").read_bytes()
    (tmp_path / "truncated.pth").write_bytes(whole[:1000])
    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    if mistake == "corrupt":
        for path in (tmp_path / "images" / "train" / "red").iterdir():
            path.write_bytes(path.read_bytes()[:99])

    arguments, options, message = MISTAKES[mistake]
    argv = [] if mistake == "config" else [str(recipe), "--work-dir", str(tmp_path / "work")]
    argv += [argument.format(tmp_path) for argument in arguments]
    if options:
        argv += ["--cfg-options", *(f"{key}={value}" for key, value in options.items())]
    assert train_tool.main(argv) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert line.startswith("error: ") and message.format(tmp_path) in line


def test_bugs_keep_their_traceback(recipe, monkeypatch):
    from visattn.zoo.training import runner

    def build_runner(cfg):
        raise ZeroDivisionError

    monkeypatch.setattr(runner, "build_runner", build_runner)
    with pytest.raises(ZeroDivisionError):
        train_tool.main([str(recipe)])


def test_testing_on_nothing_and_dumping_to_anything_are_refused(recipe, tmp_path, capsys):
    assert test_tool.main([str(recipe), "absent.pth", "--out", "predictions.xml"]) == 2
    assert "predictions.xml must end with .json or .pkl" in capsys.readouterr().err
    recipe.write_text(recipe.read_text() + "test_dataloader = None\ntest_evaluator = None\n")
    assert test_tool.main([str(recipe), "absent.pth"]) == 2
    assert "no test_dataloader" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(recipe, tmp_path):
    """Data parallel over gloo, against one process with batches of the same images."""
    pipeline = "train_dataloader.dataset.pipeline"
    fixed = [f"{pipeline}.0.scale=(1.0,1.0)", f"{pipeline}.0.ratio=(1.0,1.0)"]
    switches = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    pair = run(
        Path("torchrun"),
        *(*switches, ROOT / "tools" / "train.py", recipe, "--launcher", "pytorch"),
        *("--work-dir", tmp_path / "pair", "--cfg-options", *fixed),
    )
    assert pair.returncode == 0, pair.stderr
    options = [*fixed, "train_dataloader.batch_size=8"]
    argv = [str(recipe), "--work-dir", str(tmp_path / "one"), "--cfg-options", *options]
    assert train_tool.main(argv) == 0

    a, b = (
        torch.load(tmp_path / name / "epoch_2.pth", weights_only=True) for name in ("pair", "one")
    )
    assert a["meta"]["iter"] == b["meta"]["iter"] == 6
    for name, value in a["state_dict"].items():
        torch.testing.assert_close(value, b["state_dict"][name], rtol=1e-4, atol=1e-5, msg=name)
    assert "GPU number: 2" in pair.stdout
