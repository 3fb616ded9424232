"""Benchmarks of poolings: what is measured, and what is written; no time is asserted."""

import csv

import pytest
import torch

from visattn.tools import benchmark
from visattn.zoo.benchmark.poolings import COLUMNS, PEER, benchmark_poolings, poolings_table
from visattn.zoo.errors import UserError

TINY = ["--tokens", "16", "--dim", "32", "--batch-size", "2", "--rounds", "1", "--seconds", "0"]


def test_writes_rows_beside_timms(tmp_path, capsys):
    arguments = ["probing", "ep", "clip", "gap", *TINY, "--out", str(tmp_path / "rows")]
    assert benchmark.main([*arguments, "--device", "cpu"]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    measured = [(row["pooling"], row["pass"]) for row in rows]
    names = ["ep", "clip", "gap", PEER]
    assert measured == [(name, kind) for kind in ("forward", "training") for name in names]
    assert {row["ratio"] for row in rows if row["pooling"] == PEER} == {"1.0"}
    assert int(rows[0]["parameters"]) == 2 * 32 * 32
    assert all(float(row["p50_ms"]) > 0 for row in rows)
    assert "Training, 2 images, 16 tokens of 32" in capsys.readouterr().out
    lines = poolings_table(tmp_path / "rows.csv").splitlines()
    assert len(lines) == 2 + 4 and any(line.startswith("| `clip` |") for line in lines)


def test_a_training_step_gives_all_gradients_but_those_of_tokens(monkeypatch):
    seen, original = [], torch.autograd.grad

    def record(out, inputs):
        seen.append(len(inputs))
        return original(out, inputs)

    monkeypatch.setattr(torch.autograd, "grad", record)
    benchmark_poolings(
        ["simpool"], torch.device("cpu"), 16, 32, 2, ("training",), rounds=1, seconds=0.0
    )
    assert set(seen) == {4, 11}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simpol"], "did you mean 'simpool'"),
        (["cbam", *TINY, "--tokens", "15"], "cannot measure 'cbam': .* square grid"),
        (["ep", *TINY, "--dim", "30"], "cannot measure 'ep': .*divide the 30"),
    ],
)
def test_mistakes_end_with_one_line(arguments, message, tmp_path, capsys):
    assert benchmark.main(["probing", *arguments, "--out", str(tmp_path / "rows")]) == 2
    with pytest.raises(UserError, match=message):
        raise UserError(capsys.readouterr().err)
