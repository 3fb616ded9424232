"""Figures over seeds."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from visattn.tools.seeds import compare, main, table


def test_means_have_sample_deviations():
    rows = table({"a": [1.0, 2.0, 3.0], "b": [5.0]}, "top1").splitlines()
    assert rows[2:] == ["| `a` | 2.00 ± 1.00 | 3 |", "| `b` | 5.00 | 1 |"]


def test_finished_runs_are_not_trained_again(tmp_path):
    for name, figures in (("one", (10.0, 20.0)), ("two", (30.0, 50.0))):
        for seed, figure in enumerate(figures):
            folder = tmp_path / f"{name}_seed{seed}"
            folder.mkdir()
            results = {"last": {"accuracy/top1": figure}}
            (folder / "test_results.json").write_text(json.dumps(results))
    found = compare(["one.py", "two.py", "--seeds", "0", "1", "--work-dir", str(tmp_path)])
    assert found == {"one": [10.0, 20.0], "two": [30.0, 50.0]}
    arguments = ["one.py", "--seeds", "0", "--work-dir", str(tmp_path), "--weights", "best_on_val"]
    assert main(arguments) == 2


@pytest.mark.heavy
def test_runs_are_trained_with_their_seeds(classification_config, tmp_path):
    options = ["train_cfg.max_epochs=1"]
    text = classification_config.read_text() + "custom_hooks = [dict(type='FinalTestHook')]\n"
    classification_config.write_text(text)
    arguments = [str(classification_config), "--seeds", "0", "1", "--work-dir", str(tmp_path)]
    found = compare([*arguments, "--train-args", "--cfg-options", *options])
    assert len(found["tiny"]) == 2
    for seed in (0, 1):
        log = next((tmp_path / f"tiny_seed{seed}").rglob("*.log")).read_text()
        assert f"seed={seed}" in log.replace(" ", "") or f"seed: {seed}" in log


def test_configuration_that_does_not_train_is_named(tmp_path, capsys, monkeypatch):
    failed = SimpleNamespace(returncode=2)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    assert main(["nowhere.py", "--seeds", "0", "--work-dir", str(tmp_path)]) == 2
    assert "training nowhere.py with seed 0 failed with code 2" in capsys.readouterr().err
