import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from visattn.zoo import demo, report
from visattn.zoo.config import load_config
from visattn.zoo.errors import DataError
from visattn.zoo.report import Step, choose_samples, read_scalars, write_report, write_steps

CONFIG = demo.ROOT / demo.CONFIG


@pytest.fixture(scope="module")
def folder(embedded_root, tmp_path_factory):
    """A working folder with embedded data, of which a demo would not make more."""
    folder = tmp_path_factory.mktemp("folder")
    shutil.copytree(embedded_root, folder, dirs_exist_ok=True)
    return folder


def prediction(path, label, predicted, score):
    top = [[predicted, score], [(predicted + 1) % 10, 1 - score]]
    return {"path": path, "label": label, "predicted": predicted, "score": score, "top": top}


@pytest.fixture
def run(folder, monkeypatch, tmp_path):
    """The folder of a run: an untrained model, ten right predictions and two wrong ones."""
    monkeypatch.chdir(folder)
    cfg = load_config(CONFIG)
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, tmp_path / "epoch_2.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "epoch_2.pth"))
    paths = [
        sorted(map(str, (folder / f"data/embedded/digits/val/{digit}").glob("*.png")))
        for digit in range(10)
    ]
    paths = [[str(path).removeprefix(f"{folder}/") for path in of_digit] for of_digit in paths]
    predictions = [prediction(paths[digit][0], digit, digit, 0.9) for digit in range(10)]
    predictions += [prediction(paths[2][1], 2, 7, 0.6), prediction(paths[8][1], 8, 3, 0.8)]
    confusion = np.zeros((10, 10), int)
    for entry in predictions:
        confusion[entry["label"], entry["predicted"]] += 1
    results = {
        "classes": [str(digit) for digit in range(10)],
        "confusion_matrix": confusion.tolist(),
        "predictions": predictions,
    }
    (tmp_path / "predictions.json").write_text(json.dumps(results))
    write_scalars(tmp_path / "20260101_000000", [training_row(10, 1), training_row(20, 2)])
    return tmp_path


def training_row(iteration, epoch, loss=1.0):
    return {"loss": loss, "lr": 0.1, "epoch": epoch, "iter": iteration, "step": iteration}


def write_scalars(folder, rows):
    (folder / "vis_data").mkdir(parents=True)
    (folder / "vis_data/scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_report_states_the_accuracy(run):
    page = write_report(CONFIG, run).read_text()
    assert "83.3<small>%</small>" in page
    assert "10 of 12 held-out images" in page


def test_report_is_self_contained(run):
    page = write_report(CONFIG, run).read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<(link|script|iframe)|url\(|@import|href=", page)
    for source in sources:
        base64.b64decode(source.partition("base64,")[2], validate=True)


def test_report_shows_routing_of_both_stages_that_route(run):
    page = write_report(CONFIG, run).read_text()
    assert page.count("stage 1: 4 of 16") == page.count("stage 2: 8 of 16") == 8


def test_report_of_a_model_without_routing_has_no_routing_section(run, tmp_path):
    config = tmp_path / "resnet.py"
    config.write_text(
        f"_base_ = ['{CONFIG}']\n"
        "model = dict(backbone=dict(_delete_=True, model_name='resnet18', num_classes=10))\n"
    )
    torch.save(
        {"state_dict": MODELS.build(load_config(config).model).state_dict()}, run / "epoch_2.pth"
    )
    page = write_report(config, run).read_text()
    assert "resnet18" in page and "Where it looks" not in page


def test_report_shows_steps(run):
    write_steps(run, [Step("Train", "python train.py --name '<b>'", 83.0)])
    page = write_report(CONFIG, run).read_text()
    assert "1 min 23 s" in page
    assert "python train.py --name &#x27;&lt;b&gt;&#x27;" in page


def test_mistakes_are_the_surest_first(run):
    page = write_report(CONFIG, run).read_text()
    wrong = re.findall(r"<b class=bad>(\d)</b> <span>instead of (\d)", page)
    assert wrong == [("3", "8"), ("7", "2")]


def test_right_samples_cover_the_classes_in_turn():
    predictions = [prediction("", digit % 3, digit % 3, 0.5) for digit in range(12)]
    right, wrong = choose_samples(predictions, classes=3, num_right=5)
    assert [entry["label"] for entry in right] == [0, 1, 2, 0, 1]
    assert wrong == []


def test_curves_of_a_resumed_run_go_on_from_what_it_resumed(tmp_path):
    tested = {"accuracy/top1": 50.0, "step": 1}
    first = [training_row(10, 1, 3.0), tested, training_row(20, 2, 2.0), training_row(30, 3, 9.0)]
    write_scalars(tmp_path / "1", first)
    write_scalars(tmp_path / "2", [training_row(30, 3, 1.0)])
    rows = read_scalars(tmp_path)
    assert [row.get("loss") for row in rows] == [3.0, None, 2.0, 1.0]


def test_curves_of_a_new_run_leave_an_old_one_out(tmp_path):
    write_scalars(tmp_path / "1", [training_row(5, 1, 3.0), training_row(10, 1, 2.0)])
    write_scalars(tmp_path / "2", [training_row(10, 1, 1.0)])
    assert [row["loss"] for row in read_scalars(tmp_path)] == [1.0]


@pytest.mark.parametrize(
    "missing, message",
    [
        ("predictions.json", r"no predictions at .*tools/test\.py"),
        ("last_checkpoint", r"no checkpoint in .*tools/train\.py"),
        ("20260101_000000/vis_data/scalars.json", r"scalars\.json"),
    ],
)
def test_what_is_missing_is_named(run, missing, message):
    (run / missing).unlink()
    with pytest.raises(DataError, match=message):
        write_report(CONFIG, run)


def test_command_line(run, monkeypatch, capsys):
    report.main([str(CONFIG), str(run), "--out", str(run / "other.html")])
    assert (run / "other.html").stat().st_size > 10_000
    assert "other.html" in capsys.readouterr().out


@pytest.mark.slow
def test_demo_runs_the_whole_path(folder):
    command = [sys.executable, "-m", "visattn.zoo.demo", "--work-dir", "out", "--cfg-options"]
    options = ["train_cfg.max_epochs=1", "param_scheduler.warmup=0", "param_scheduler.T_max=1"]
    result = subprocess.run(command + options, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    page = (folder / "out/report.html").read_text()
    predictions = json.loads((folder / "out/predictions.json").read_text())["predictions"]
    assert len(predictions) == 360
    assert f"of {len(predictions)} held-out images" in page
    steps = json.loads((folder / "out/steps.json").read_text())
    assert [step["name"] for step in steps] == ["Make the data", "Train", "Test"]
    assert all(step["seconds"] > 0 for step in steps)


@pytest.mark.slow
def test_demo_stops_at_the_step_that_fails(folder, monkeypatch, capfd):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as exit_info:
        demo.main(["--work-dir", "failed", "--cfg-options", "train_cfg.max_epoch=1"])
    assert exit_info.value.code == 2
    assert "'Train' failed with exit code 2" in capfd.readouterr().err
    assert not (folder / "failed/report.html").exists()
