"""Benchmarks of the kernels: who takes part, and what they are measured by; no time is asserted."""

import csv
import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visattn.tools import benchmark
from visattn.zoo.benchmark import kernel_report
from visattn.zoo.benchmark.cases import (
    CASES,
    OPS,
    AgentAttention,
    BilevelRoutingAttention,
    Copy,
    DepthwiseConv,
    EfficientLocalAttention,
    MultiQueryPool,
    NeighborhoodAttention,
    RoIAlign,
    RoIUnpool,
    WindowAttention,
    select_cases,
)
from visattn.zoo.benchmark.kernels import (
    COLUMNS,
    FLOOR,
    Settings,
    benchmark_kernels,
    floor_step,
)
from visattn.zoo.benchmark.timing import time_side_by_side
from visattn.zoo.errors import UserError

CPU = torch.device("cpu")
BRIEF = {"batch_size": 2, "rounds": 1, "seconds": 0.0}
WINDOWS = WindowAttention("tiny", side=8, heads=2, shift=2, window=4, dim=8)
TINY = [
    WINDOWS,
    BilevelRoutingAttention("tiny", side=8, heads=2, topk=3, regions=2, dim=8),
    NeighborhoodAttention("tiny", side=14, heads=2, kernel=5, dim=8),
    NeighborhoodAttention("tiny, dilated", side=11, heads=2, dilation=2, kernel=3, dim=8),
    NeighborhoodAttention("tiny, no bias", side=14, heads=2, kernel=4, bias=False, dim=8),
    DepthwiseConv("tiny", side=5, channels=16),
    EfficientLocalAttention("tiny", side=6, channels=8, kernel=5, width=4, norm_groups=2),
    MultiQueryPool("tiny", tokens=9, dim=12, queries=4),
    MultiQueryPool("tiny, trained", tokens=9, dim=12, queries=4, frozen=False),
    RoIAlign("tiny", side=16, channels=3, regions=4, bins=3, extent=(8, 100)),
    RoIUnpool("tiny", side=16, channels=3, bins=7, regions=4),
    AgentAttention("tiny", side=6, heads=2, agents=4, dim=8, prefix=1),
]


def unable(case, kind):
    """Peers that cannot run a tiny case on the CPU."""
    # FlexAttention has no gradients on the CPU, and NATTEN is FlexAttention there.
    names = {"flex", "natten alone"} if kind == "both" else set()
    if isinstance(case, NeighborhoodAttention):
        names |= {"natten alone"} if case.bias else set()
        names |= {"sdpa tiles"} if case.dilation > 1 else set()
    return names


def measure(*cases, passes=("forward", "both"), only=None, **settings):
    return benchmark_kernels(cases, Settings(CPU, **{**BRIEF, **settings}), passes, only)


def test_every_op_is_tried_at_a_tiny_shape():
    assert {case.op for case in TINY} == set(OPS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_the_ops_take_the_shapes_of_the_table(case):
    inputs = case.inputs(2, device="meta", dtype=torch.float32)
    assert case.run("reference", **inputs).shape[0] >= 2


@pytest.mark.parametrize("case", TINY, ids=lambda case: f"{case.op}-{case.name}")
@pytest.mark.parametrize("kind", ["forward", "both"])
def test_peers_compute_the_op(case, kind):
    names = {name for name in case.peers if "compiled" not in name}
    rows = measure(case, passes=[kind], only=names)
    assert {row["contestant"] for row in rows} == names | {FLOOR}
    assert {row["contestant"] for row in rows if row["error"]} == unable(case, kind) & names
    assert not any((row["error"] or "").startswith("wrong") for row in rows)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounding_in_low_precision_is_not_wrong(dtype):
    rows = measure(WINDOWS, dtype=dtype, only=["cpu", "reference", "eager", "sdpa"])
    assert all(row["error"] is None and row["dtype"] == dtype for row in rows)


class Impostors(WindowAttention):
    """Contestants of which one is right."""

    peers = {
        "right": lambda case, inputs: lambda **x: case.run("reference", **x),
        "off": lambda case, inputs: lambda **x: case.run("reference", **x) * 1.001,
        "nan": lambda case, inputs: lambda **x: case.run("reference", **x) * float("nan"),
        "flat": lambda case, inputs: lambda **x: case.run("reference", **x).flatten(3),
        "gradient": lambda case, inputs: (
            lambda qkv, bias: case.run("reference", qkv=qkv, bias=bias.detach() + 0 * bias)
        ),
    }


def test_what_is_wrong_is_not_timed():
    case = Impostors("tiny", side=8, heads=2, window=4, dim=8)
    names = ["right", "off", "nan", "flat", "gradient"]
    forward, both = (
        {row["contestant"]: row for row in measure(case, passes=[kind], only=names)}
        for kind in ("forward", "both")
    )
    for name in ("off", "nan", "flat"):
        assert forward[name]["error"].startswith("wrong: the output is")
        assert forward[name]["p50_ms"] is None
    assert forward["right"]["error"] is None and forward["gradient"]["error"] is None
    assert both["gradient"]["error"].startswith("wrong: the gradient of bias is off by")
    assert both["right"]["p50_ms"] > 0 and both["gradient"]["p50_ms"] is None


def test_rows_have_every_column_and_ratios_to_floor_and_fastest_peer():
    rows = measure(WINDOWS, only=["cpu", "triton", "reference", "eager"])
    assert all(tuple(row) == COLUMNS for row in rows)
    for kind in ("forward", "both"):
        named = {row["contestant"]: row for row in rows if row["pass"] == kind}
        fastest = min((named["reference"], named["eager"]), key=lambda row: row["p50_ms"])
        for name in ("cpu", "reference", "eager"):
            row = named[name]
            assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
            assert row["fastest_peer"] == fastest["contestant"]
            expected = row["p50_ms"] / fastest["p50_ms"]
            assert row["vs_fastest_peer"] == pytest.approx(expected, abs=1e-3)
            expected = row["p50_ms"] / named[FLOOR]["p50_ms"]
            assert row["vs_floor"] == pytest.approx(expected, abs=1e-3)
        assert "interpreted" in named["triton"]["error"]
        assert named["triton"]["p50_ms"] is named["triton"]["vs_floor"] is None
    peaks = {row["contestant"]: row["peak_mib"] for row in rows if row["pass"] == "both"}
    assert 0 < peaks[FLOOR] < peaks["cpu"] < peaks["eager"]


@pytest.mark.parametrize("case", [WINDOWS, TINY[-1]], ids=lambda case: case.op)
def test_the_floor_multiplies_as_much_as_the_op(case):
    inputs = case.inputs(2, device=CPU, dtype=torch.float32)
    eager = case.peers["eager"](case, inputs)

    def flops(step):
        with FlopCounterMode(display=False) as counter:
            step()
        return counter.get_total_flops()

    needed = flops(lambda: eager(**inputs))
    settings = Settings(CPU, batch_size=2)
    assert flops(floor_step(case, settings, "forward")) == needed > 0
    assert flops(floor_step(case, settings, "both")) == 3 * needed


def test_the_floor_copies_what_must_be_read_and_written():
    class Copied(WindowAttention):
        def floor(self, batch):
            return Copy(forward=batch * 200, both=batch * 500)

    case = Copied("tiny", 8, 2)
    assert floor_step(case, Settings(CPU, batch_size=3), "forward")().shape == (300,)
    assert floor_step(case, Settings(CPU, batch_size=3), "both")().shape == (750,)


def test_a_slow_step_is_timed_once():
    calls = {"slow": 0, "fast": 0}

    def step(name, seconds):
        calls[name] += 1
        time.sleep(seconds)

    steps = {"slow": lambda: step("slow", 0.03), "fast": lambda: step("fast", 0)}
    seconds = time_side_by_side(steps, CPU, 0, iters=40, min_time=0, rounds=4, max_time=0.02)
    assert len(seconds["slow"]) == 1 and calls["slow"] == 1
    assert len(seconds["fast"]) >= 4


def test_unknown_ops_cases_and_contestants_are_named(capsys):
    with pytest.raises(UserError, match="no such op: windo; there are window_attention"):
        select_cases(["windo"])
    with pytest.raises(UserError, match="no case is named like 'swim'"):
        select_cases(text="swim")
    assert benchmark.main(["kernels", "window_attention", "--impl", "cuda"]) == 2
    assert "no such contestant: cuda; there are cpu, eager" in capsys.readouterr().err


def test_command_writes_rows_and_a_plot(tmp_path, capsys):
    out = tmp_path / "deep" / "results.csv"
    command = ["kernels", "window_attention", "--case", "swin_tiny stage 4", "--device", "cpu"]
    command += ["--impl", "cpu", "sdpa", "flex", "--batch-size", "1", "--rounds", "1"]
    command += ["--seconds", "0", "--out", str(out)]
    assert benchmark.main([*command, "--forward"]) == 0
    assert benchmark.main([*command, "--backward"]) == 0
    printed = capsys.readouterr().out
    assert "window_attention, forward" in printed and "x fastest peer" in printed
    with out.open() as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    contestants = ["cpu", "sdpa", "flex", "floor"]
    assert [row["contestant"] for row in table] == contestants * 2
    assert [row["pass"] for row in lines] == ["forward"] * 4 + ["both"] * 4
    assert [bool(row["error"]) for row in lines] == [False] * 6 + [True, False]
    assert lines[0]["numba"] and lines[0]["threads"] == torch.get_num_threads()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_implementation_fails_the_command_and_a_wrong_peer_does_not(
    tmp_path, capsys, monkeypatch
):
    class Off(Impostors):
        def run(self, impl=None, **inputs):
            return super().run("reference", **inputs) * (1.001 if impl == "cpu" else 1)

    case = Off("tiny", side=8, heads=2, window=4, dim=8)
    monkeypatch.setattr(benchmark, "select_cases", lambda ops, text: [case])
    command = ["kernels", "--forward", "--rounds", "1", "--seconds", "0", "--device", "cpu"]
    command += ["--out", str(tmp_path / "x"), "--impl", "right", "off"]
    assert benchmark.main(command) == 0
    assert benchmark.main([*command, "cpu"]) == 2
    assert "window_attention, tiny, cpu: wrong: the output is off" in capsys.readouterr().err


def test_tables_leave_out_what_was_not_timed():
    rows = measure(WINDOWS, passes=["forward"], only=["cpu", "eager"])
    rows.append({**rows[0], "contestant": "lame", "p50_ms": None, "error": "cannot walk"})
    ((_, head, body),) = kernel_report.tables(rows)
    assert {cells[1] for cells in body} == {"cpu", "eager", "floor"}
    assert all(len(cells) == len(head) for cells in body)
    assert [float(cells[3]) for cells in body] == sorted(float(cells[3]) for cells in body)
