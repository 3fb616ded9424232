"""Benchmarks of AgentSD: what is measured, and what is written; no time is asserted."""

import csv

import pytest

from visattn.tools import benchmark
from visattn.zoo.benchmark.agentsd import COLUMNS, PLAIN, agentsd_table
from visattn.zoo.errors import UserError

MICRO = ["agentsd", "--unet", "micro", "--rounds", "1", "--device", "cpu"]


def test_writes_rows_beside_the_plain_unet(tmp_path, capsys):
    assert benchmark.main([*MICRO, "--ratio", "0.2", "--out", str(tmp_path / "rows")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    plain, agents, merged = rows
    assert (plain["contestant"], plain["speed"], plain["difference"]) == (PLAIN, "1.0", "0.0")
    assert [(row["merged"], row["agents"]) for row in (agents, merged)] == [
        ("205", "16"),
        ("205", ""),
    ]
    for row in (agents, merged):
        assert 0 < float(row["difference"]) < 1 and float(row["p50_ms"]) > 0
    assert "2 latents of 16 x 16" in capsys.readouterr().out
    lines = agentsd_table(tmp_path / "rows.csv").splitlines()
    assert len(lines) == 2 + 3 and lines[3].startswith("| agents among merged tokens, 0.2 | 205 |")


def test_mistakes_end_with_one_line(tmp_path, capsys):
    assert benchmark.main(["agentsd", "--unet", "sd9", "--out", str(tmp_path / "rows")]) == 2
    with pytest.raises(UserError, match="there is no UNet 'sd9'; there are sd15, sd21"):
        raise UserError(capsys.readouterr().err)
