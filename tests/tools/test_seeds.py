"""Comparisons over seeds."""

import json

import pytest
import torch

from visattn.tools.seeds import compare, main
from visattn.zoo.errors import UserError
from visattn.zoo.seeds import seeds_table, table, write_rows

RUNS = {
    "a": [
        {"mAP": 10.0, "rank1": 20.0},
        {"mAP": 12.0, "rank1": 20.0},
        {"mAP": 14.0, "rank1": 26.0},
    ],
    "b": [{"mAP": 3.0}],
}


def test_table_has_means_and_sample_deviations():
    lines = table(RUNS).splitlines()
    assert lines[0] == "|  | seeds | mAP | rank1 |"
    assert lines[2] == "| a | 3 | 12.0 ± 2.0 | 22.0 ± 3.5 |"
    assert lines[3] == "| b | 1 | 3.0 |  |"


def test_table_shows_what_is_asked_for():
    assert table(RUNS, ["rank1"]).splitlines()[2] == "| a | 3 | 22.0 ± 3.5 |"


def test_written_figures_give_the_same_table(tmp_path):
    runs = {name: dict(enumerate(own)) for name, own in RUNS.items()}
    write_rows(runs, tmp_path / "seeds.csv", ["mAP"])
    shown = seeds_table(tmp_path / "seeds.csv").replace("`", "")
    assert shown == table(RUNS, ["mAP"])


@pytest.mark.parametrize("content", [None, "", "config,seed\na,0\n"])
def test_table_of_no_figures_is_an_error(tmp_path, content):
    path = tmp_path / "seeds.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"seeds\.csv"):
        seeds_table(path)


def test_each_seed_is_trained_once(classification_config, tmp_path):
    options = ["--seeds", "1", "2", "--work-dir", str(tmp_path / "runs")]
    options += ["--cfg-options", "train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
    found = compare([str(classification_config), *options])
    folders = [tmp_path / "runs" / "tiny" / f"seed{seed}" for seed in (1, 2)]
    assert list(found["tiny"].values()) == [
        json.loads((folder / "final.json").read_text()) for folder in folders
    ]
    times = [(folder / "epoch_1.pth").stat().st_mtime_ns for folder in folders]
    assert compare([str(classification_config), *options]) == found
    assert [(folder / "epoch_1.pth").stat().st_mtime_ns for folder in folders] == times
    weights = [torch.load(f / "epoch_1.pth", weights_only=True)["state_dict"] for f in folders]
    name = next(iter(weights[0]))
    assert not torch.equal(weights[0][name], weights[1][name])


def test_figures_are_of_the_test_set_where_there_is_one(classification_config, tmp_path):
    text = classification_config.read_text() + "custom_hooks = [dict(type='FinalTestHook')]\n"
    classification_config.write_text(text)
    options = ["--seeds", "0", "--work-dir", str(tmp_path), "--cfg-options"]
    found = compare([str(classification_config), *options, "train_cfg.max_epochs=1"])["tiny"][0]
    results = json.loads((tmp_path / "tiny" / "seed0" / "test_results.json").read_text())
    assert found["accuracy/top1"] == results["last"]["accuracy/top1"]
    for name, value in results.get("best_on_val", {}).items():
        assert found[f"best_on_val/{name}"] == value


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    path = tmp_path / "empty.py"
    path.write_text('default_scope = "visattn"\nmodel = dict(type="ImageClassifier")\n')
    assert main([str(path)]) == 2
    assert "has no val_dataloader" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
