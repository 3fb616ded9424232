"""The benchmark of ROICtrl: what is measured, and what is written; no time is asserted."""

import csv

import pytest
import torch

from visattn.heads.diffusion.roictrl import ROIFuser
from visattn.tools import benchmark
from visattn.zoo.benchmark.roictrl import COLUMNS, METHODS, benchmark_roictrl, roictrl_table

TINY = ["--unet", "micro", "--rounds", "1", "--seconds", "0", "--device", "cpu"]


def test_writes_rows_beside_masked_attention(tmp_path, capsys):
    out = str(tmp_path / "rows")
    assert benchmark.main(["roictrl", *TINY, "--instances", "1", "--out", out]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    measured = [(row["pass"], row["instances"], row["method"]) for row in rows]
    passes = ("inference", "training")
    assert measured == [(p, n, m) for p in passes for n in ("1",) for m in METHODS]
    own = [row for row in rows if row["method"] == "roictrl"]
    assert all(row["ratio"] == row["memory_ratio"] == "1.0" for row in own)
    assert all(float(row["p50_ms"]) > 0 and float(row["peak_mib"]) > 0 for row in rows)
    assert "Training, 1 images of 16 x 16 latents, micro" in capsys.readouterr().out
    lines = roictrl_table(tmp_path / "rows.csv").splitlines()
    assert len(lines) == 2 + 2
    assert lines[-1].startswith("| training | 1 |")


def test_methods_compute_what_they_are_named(monkeypatch):
    """ROICtrl's fusers run in its own steps alone, and training asks for their gradients."""
    calls, asked, original = [], set(), torch.autograd.grad
    forward = ROIFuser.forward
    monkeypatch.setattr(ROIFuser, "forward", lambda *a: calls.append(1) or forward(*a))

    def record(out, inputs, **kwargs):
        asked.add(len(inputs))
        return original(out, inputs, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", record)
    settings = {"passes": ("training",), "rounds": 1, "seconds": 0.0}
    (rows,) = benchmark_roictrl([2], torch.device("cpu"), "micro", **settings)
    assert [row["method"] for row in rows] == list(METHODS)
    assert asked == {1, 1 + 127}
    assert len(calls) % 4 == 0 and calls


def test_mistakes_end_with_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["roictrl", "--unet", "sd9", "--out", str(tmp_path / "rows")])
    assert "invalid choice: 'sd9'" in capsys.readouterr().err
