"""Benchmarks: what is computed around the clock; no time is asserted."""

import csv
import json
import math

import pytest
import timm
import torch
from timm.models import register_model
from torch import nn

from visattn.tools import benchmark
from visattn.zoo.benchmark import report
from visattn.zoo.benchmark.counters import count_macs, peak_memory
from visattn.zoo.benchmark.models import COLUMNS, benchmark_models
from visattn.zoo.benchmark.subject import Settings, describe_error
from visattn.zoo.benchmark.timing import percentiles, ratios, time_side_by_side
from visattn.zoo.errors import UserError

CPU = torch.device("cpu")
BRIEF = {"warmup": 0, "iters": 2, "min_time": 0.0, "rounds": 2}


class Broken(nn.Module):
    """A classifier whose outputs, or only whose gradients, are not finite."""

    pretrained_cfg = {"input_size": (3, 8, 8)}

    def __init__(self, outputs: bool):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(3))
        self.outputs = outputs

    def forward(self, x):
        if self.outputs:
            return x.mean((2, 3)) / self.scale
        return x.mean((2, 3)) + (self.scale * 0).sqrt()


@register_model
def benchmark_nan_outputs(pretrained=False, **kwargs):
    return Broken(outputs=True)


@register_model
def benchmark_nan_gradients(pretrained=False, **kwargs):
    return Broken(outputs=False)


def measure(*names, benches=("infer", "train"), **settings):
    return benchmark_models(names, Settings(CPU, **{"batch_size": 2, **settings}), benches, **BRIEF)


def test_percentiles_interpolate():
    assert percentiles([5.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx((1.8, 3.0, 4.2))
    with pytest.raises(ValueError, match="no durations"):
        percentiles([])


def test_ratios_are_to_the_baseline():
    values = {"ours": 30.0, "theirs": 20.0, "failed": None}
    assert ratios(values, "theirs") == {"ours": 1.5, "theirs": 1.0, "failed": None}
    assert ratios(values, "failed") == dict.fromkeys(values)


def test_steps_take_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = time_side_by_side(steps, CPU, warmup=1, iters=6, min_time=0, rounds=3)
    assert "".join(calls) == "aabb" + "aabb" + "bbaa" + "aabb"
    assert [len(values) for values in seconds.values()] == [6, 6]


def test_a_failing_step_leaves_the_others():
    errors = {}
    steps = {"good": lambda: None, "bad": lambda: 1 / 0}
    seconds = time_side_by_side(steps, CPU, 0, 2, 0, rounds=1, on_error=errors.__setitem__)
    assert list(seconds) == ["good"] and isinstance(errors["bad"], ZeroDivisionError)


def test_peak_memory_is_that_of_the_worst_moment():
    a, b = torch.rand(2, 1 << 20)  # 4 MiB each, there before

    def step():
        first = a + b
        second = first * a
        del first
        return second * b

    assert peak_memory(step, CPU) == 2 * 4 * 2**20
    assert peak_memory(lambda: a.add_(b), CPU) == 0


def test_peak_memory_counts_what_backward_keeps():
    x = torch.rand(1 << 20, requires_grad=True)

    def step():
        x.exp().exp().sum().backward()
        x.grad = None

    assert 2 * 4 * 2**20 <= peak_memory(step, CPU) <= 4 * 4 * 2**20


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, x):  # (B, heads, N, dim)
        if self.fused:
            return nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", x, x).softmax(-1), x)


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Linear(6, 5), (1, 7, 6), 7 * 6 * 5),
        (nn.Conv2d(4, 8, 3, groups=2, bias=False), (1, 4, 6, 6), 4 * 4 * 8 * 2 * 9),
        (nn.BatchNorm2d(4), (1, 4, 3, 3), 2 * 36),
        (nn.LayerNorm(4), (1, 9, 4), 5 * 36),
        (Attention(fused=True), (1, 3, 10, 8), 2 * 3 * 10 * 10 * 8),
        (Attention(fused=False), (1, 3, 10, 8), 2 * 3 * 10 * 10 * 8),
    ],
)
def test_macs_of_known_layers(layer, shape, macs):
    assert count_macs(layer.eval(), torch.randn(shape)) == macs


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("biformer_tiny", 2.2280),
        ("biformer_stl", 4.5899),
        ("resnet50", 4.11),
        ("swin_tiny_patch4_window7_224", 4.51),
        ("vit_small_patch16_224", 4.61),
    ],
)
def test_macs_are_the_published(name, gmacs):
    digits = len(str(gmacs).partition(".")[2].ljust(2, "0"))
    macs = count_macs(timm.create_model(name).eval(), torch.zeros(1, 3, 224, 224))
    assert round(macs / 1e9, digits) == gmacs


@pytest.fixture(scope="module")
def rows():
    return measure("test_vit", "timm/test_resnet")


def test_rows_have_every_column(rows):
    for row in rows:
        assert tuple(row) == COLUMNS
        missing = [column for column, value in row.items() if value is None]
        assert set(missing) <= {"error", "commit", "triton"}
        for bench in ("infer", "train"):
            assert 0 < row[f"{bench}_p20_ms"] <= row[f"{bench}_p50_ms"] <= row[f"{bench}_p80_ms"]
            expected = 2e3 / row[f"{bench}_p50_ms"]
            assert math.isclose(row[f"{bench}_samples_per_sec"], expected, rel_tol=0.01)
    assert [row["model"] for row in rows] == ["test_vit", "timm/test_resnet"]
    assert rows[0]["param_count"] == 0.3712
    assert rows[0]["train_peak_mib"] > rows[0]["infer_peak_mib"] > 0


@pytest.mark.parametrize("name", ["benchmark_nan_outputs", "benchmark_nan_gradients"])
def test_a_model_that_is_not_finite_is_not_timed(name):
    broken, healthy = measure(name, "test_resnet", benches=("train",))
    assert "not finite" in broken["error"] and name in broken["error"]
    assert broken["train_samples_per_sec"] is None
    assert healthy["error"] is None and healthy["train_samples_per_sec"] > 0


def test_nan_outputs_fail_inference_but_nan_gradients_do_not():
    outputs, gradients = measure(
        "benchmark_nan_outputs", "benchmark_nan_gradients", benches=("infer",)
    )
    assert "outputs" in outputs["error"]
    assert gradients["error"] is None


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_amp_channels_last_and_other_sizes(amp):
    (row,) = measure("test_vit", amp=amp, channels_last=True, img_size=(96, 64))
    assert row["error"] is None
    assert (row["train_img_size"], row["amp"], row["channels_last"]) == ("96x64", amp, True)


def test_out_of_memory_names_the_batch_and_is_no_smaller_batch():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    assert describe_error(error, 512) == (
        "out of memory at batch size 512; pass a smaller --batch-size"
    )
    (row,) = measure("test_vit", benches=("infer",), batch_size=10**9)
    assert "out of memory at batch size 1000000000" in row["error"]
    assert row["infer_batch_size"] is None


def test_an_impossible_size_is_one_error(capsys, tmp_path):
    arguments = ["test_vit", "--device", "cpu", "--img-size", "5", "--out", str(tmp_path / "x")]
    assert benchmark.main(arguments) == 2
    error = capsys.readouterr().err
    assert "test_vit does not take images of 5 x 5 pixels" in error


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["biformer_tini"], "did you mean biformer_tiny"),
        (["timm/test_vti"], "test_vit"),
        (["test_vit", "timm/test_vit"], "more than once"),
        (["biformer_tiny@cuda"], "after @ comes one of auto, reference"),
    ],
)
def test_wrong_names_are_told_before_anything_is_timed(names, message):
    with pytest.raises(UserError, match=message):
        measure(*names)


def test_command_writes_rows_and_a_plot(tmp_path, capsys):
    out = tmp_path / "deep" / "results.csv"
    command = ["test_vit", "--against", "timm/test_resnet", "--out", str(out), "--iters", "2"]
    command += ["--min-time", "0", "--rounds", "1", "--device", "cpu", "--batch-size", "2"]
    command += ["--warmup", "0", "--model-kwargs", "num_classes=7"]
    for _ in range(2):
        assert benchmark.main(command) == 0
    printed = capsys.readouterr().out
    assert "vs timm/test_resnet" in printed and "Inference" in printed and "Training" in printed
    with out.open() as file:
        table = list(csv.DictReader(file))
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["model"] for row in table] == ["test_vit", "timm/test_resnet"] * 2
    assert [row["infer_p50_ms"] for row in lines] == [float(row["infer_p50_ms"]) for row in table]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_foreign_table_is_not_appended_to(tmp_path, capsys):
    out = tmp_path / "results.csv"
    out.write_text("a,b\n1,2\n")
    assert benchmark.main(["test_vit", "--out", str(out), "--device", "cpu"]) == 2
    assert "other columns" in capsys.readouterr().err
    assert out.read_text() == "a,b\n1,2\n"


def test_without_matplotlib_the_remedy_is_named(rows, monkeypatch, tmp_path):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        report.plot(rows, tmp_path / "plot.png")


def test_without_rich_the_table_is_plain(rows, monkeypatch, capsys):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    report.print_tables(rows, "timm/test_resnet")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("timm/test_resnet") and "1.00 x" in line for line in lines)


def test_a_plot_has_no_bar_for_a_failed_model(rows, tmp_path):
    failed = {**dict.fromkeys(COLUMNS), "model": "failed", "error": "out of memory"}
    report.plot([*rows, failed], tmp_path / "plot.png")
    assert [row[0] for row in report.tables([*rows, failed], None)[0][2]] == [
        "test_vit",
        "timm/test_resnet",
    ]
