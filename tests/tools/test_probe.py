"""The command line of probing."""

import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from visattn.tools import probe
from visattn.zoo.errors import UserError
from visattn.zoo.probing.summary import SUMMARY, probing_table, summarize, write_rows


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "network.pth"
    torch.save(timm.create_model("test_vit", img_size=32).state_dict(), path)
    return path


@pytest.mark.parametrize("cached", [False, True], ids=["images", "cached"])
def test_tells_of_every_head_and_seed(probe_config, checkpoint, tmp_path, cached, capsys):
    out = tmp_path / "out"
    arguments = [str(probe_config), "--work-dir", str(out), "--seeds", "1", "2", "--maps", "2"]
    arguments += ["--cached", "--knn"] if cached else []
    assert probe.main([*arguments, "--cfg-options", f"model.checkpoint={checkpoint}"]) == 0

    rows = read(out / "heads.csv")
    knn = ["k-NN"] if cached else []
    assert [row["head"].split(" ")[0] for row in rows] == ["ep", "whole", "linear", *knn] * 2
    parameters = {row["head"]: int(row["parameters"]) for row in rows}
    assert parameters["ep"] == 4 * 64 + 64 * 64 + 64 * 3 + 3
    assert parameters["linear"] == 64 * 3 + 3
    for row in rows:
        assert 0 <= float(row["last_top1"]) <= float(row["top1"]) <= 100
        assert row["head"].startswith("k-NN") or 1 <= int(row["epoch"]) <= 2
    if cached:
        # Both seeds read the same, and the features of k-NN are class tokens alone.
        assert len(list((tmp_path / "features").iterdir())) == 4
    summary = read(out / "summary.csv")
    assert [row["seeds"] for row in summary] == ["2"] * len(summary)
    assert {path.name for path in (out / "queries").iterdir()} == {"ep.png", "whole.png"}
    # Two images of 32 pixels, drawn twice as large, and four queries or heads of each.
    assert np.asarray(Image.open(out / "queries" / "ep.png")).shape == (128, 5 * 64, 3)
    assert (out / "accuracy.png").stat().st_size > 1000
    assert "linear" in capsys.readouterr().out


def test_mistakes_end_with_one_line(probe_config, classification_config, tmp_path, capsys):
    out = ["--work-dir", str(tmp_path / "out")]
    assert probe.main([str(classification_config), *out]) == 2
    assert "trains a ImageClassifier: a Probe is needed" in capsys.readouterr().err
    assert probe.main([str(probe_config), *out, "--cached"]) == 2
    assert "set model.checkpoint=FILE" in capsys.readouterr().err
    options = ["--cfg-options", "model.heads.linear.pooling=gap_all"]
    assert probe.main([str(probe_config), *out, "--knn", *options]) == 2
    assert "probing.knn takes the features of a linear head" in capsys.readouterr().err


ROW = {
    "pooling": "ep",
    "tokens": "patch",
    "layer": 5,
    "lr": 0.1,
    "parameters": 12345,
    "step_ms": 2.0,
}


def test_a_summary_has_mean_and_deviation(tmp_path):
    rows = [
        {**ROW, "head": "EP", "seed": seed, "top1": top1, "last_top1": top1 - 1}
        for seed, top1 in enumerate((50.0, 60.0, 70.0))
    ]
    (summary,) = summarize(rows)
    assert (summary["top1_mean"], summary["top1_std"], summary["seeds"]) == (60, 10, 3)
    assert (summary["last_top1_mean"], summary["last_top1_std"]) == (59, 10)
    write_rows([summary], tmp_path / "summary.csv", SUMMARY)
    assert probing_table(tmp_path / "summary.csv").splitlines()[2] == (
        "| EP | `ep` of patches | 12,345 | 59.00 ± 10.00 |"
    )


def test_a_table_is_of_a_summary_alone(tmp_path):
    (tmp_path / "other.csv").write_text("head,seed\nEP,1\n")
    with pytest.raises(UserError, match="no summary of tools/probe.py"):
        probing_table(tmp_path / "other.csv")
    with pytest.raises(UserError, match="there is no file"):
        probing_table(tmp_path / "absent.csv")
