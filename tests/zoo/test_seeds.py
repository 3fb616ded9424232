"""Comparisons over seeds."""

import json

import pytest

from visattn.zoo import seeds
from visattn.zoo.seeds import table


def test_table_has_means_and_standard_deviations():
    runs = [
        {"mAP": 10.0, "rank1": 20.0},
        {"mAP": 12.0, "rank1": 20.0},
        {"mAP": 14.0, "rank1": 26.0},
    ]
    lines = table({"a": runs, "b": [{"mAP": 3.0}]}).splitlines()
    assert lines[0] == "|  | seeds | mAP | rank1 |"
    assert lines[2] == "| a | 3 | 12.0 ± 2.0 | 22.0 ± 3.5 |"
    assert lines[3] == "| b | 1 | 3.0 |  |"


def test_each_seed_is_trained_once(classification_config, tmp_path, capsys):
    options = ["--seeds", "1", "2", "--work-dir", str(tmp_path / "runs")]
    options += ["--cfg-options", "train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    assert seeds.main([str(classification_config), *options]) == 0
    shown = capsys.readouterr().out.splitlines()[-3:]
    folders = [tmp_path / "runs" / "tiny" / f"seed{seed}" for seed in (1, 2)]
    found = [json.loads((folder / "final.json").read_text()) for folder in folders]
    mean = sum(run["accuracy/top1"] for run in found) / 2
    assert shown[2].startswith(f"| tiny | 2 | {mean:.1f} ")
    times = [(folder / "epoch_1.pth").stat().st_mtime_ns for folder in folders]
    assert seeds.main([str(classification_config), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-3:] == shown
    assert [(folder / "epoch_1.pth").stat().st_mtime_ns for folder in folders] == times


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    path = tmp_path / "empty.py"
    path.write_text('default_scope = "visattn"\nmodel = dict(type="ImageClassifier")\n')
    assert seeds.main([str(path)]) == 2
    assert "has no val_dataloader" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        seeds.main([])
