"""The audit of Triton kernels, in processes where these are compiled and not interpreted."""

import csv
import os
import subprocess
import sys

import pytest

from visattn.tools import audit
from visattn.zoo.benchmark.audit import TARGETS, occupancy


def compile_in_another_process(*command, **kwargs):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, **kwargs
    )


def run_audit(*arguments):
    return compile_in_another_process("-m", "visattn.tools.audit", *arguments)


# The case of an op that asks most of its tiles, or takes most branches.
SAMPLE = {
    "window_attention": "swin_tiny stage 1, shifted",
    "neighborhood_attention": "dinat_mini stage 2, dilated",
    "bilevel_routing_attention": "biformer_tiny stage 2",
    "agent_attention": "agent_pvt_tiny stage 2",
    "efficient_local_attention": "elaresnet50_l stage 2",
    "multi_query_pool": "EP32 on ViT-B/16, trained",
    "roi_align": "Mask R-CNN's mask head, P3",
    "roi_unpool": "ROICtrl at 32 x 32",
}


@pytest.mark.slow
@pytest.mark.parametrize("op", SAMPLE)
def test_a_sample_of_kernels_is_as_it_should_be(op):
    done = run_audit(op, "--case", SAMPLE[op], "--dtypes", "fp16", "--targets", "sm_80", "sm_90")
    assert done.returncode == 0, done.stderr
    assert "no spills, tensor cores in every product of matrices" in done.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("op", SAMPLE)
def test_a_sample_of_kernels_is_as_it_should_be_in_all_dtypes(op):
    done = run_audit(op, "--case", SAMPLE[op], "--targets", "sm_80", "sm_90")
    assert done.returncode == 0, done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("target, dtypes", [("sm_80", "fp32 fp16"), ("sm_90", "fp16")])
@pytest.mark.parametrize("op", SAMPLE)
def test_all_kernels_are_as_they_should_be(op, target, dtypes):
    done = run_audit(op, "--targets", target, "--dtypes", *dtypes.split())
    assert done.returncode == 0, done.stderr


def test_rows_tell_resources_instructions_and_traffic(tmp_path):
    arguments = ["window_attention", "--case", "swin_tiny stage 4", "--dtypes", "bf16"]
    done = run_audit(*arguments, "--batch-size", "4", "--out", str(tmp_path / "rows"))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3 and {row["target"] for row in rows} == {"sm_80", "sm_90", "gfx942"}
    for row in rows:
        assert int(row["registers"]) >= 16 and int(row["spilled_bytes"]) == 0
        assert 0 < float(row["occupancy"]) <= 1
        assert row["matrix"] == "True" and int(row["tensor_core_instructions"]) > 0
        assert row["moved_exactly"] == "True"
    # q, k, v and the output, log-sum-exp, and the bias, of 4 maps of 49 tokens.
    tokens = 4 * 49 * 24
    compulsory = (tokens * 32 * 4 * 2 + tokens * 4 + 24 * 49 * 49 * 2) / 2**20
    moved = (tokens * 32 * 4 * 2 + tokens * 4 + 4 * 24 * 49 * 49 * 2) / 2**20
    forward = [row for row in rows if row["kernel"] == "window_attention_fwd_kernel"]
    for row in forward:
        assert float(row["mib_compulsory"]) == pytest.approx(compulsory, abs=1e-3)
        assert float(row["mib_moved"]) == pytest.approx(moved, abs=1e-3)


FAULTS = """
import sys
import torch
import triton
import triton.language as tl
from visattn.kernels._triton import launch
from visattn.zoo.benchmark import audit


@triton.jit
def product(p_x, p_y, p_out, steps, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    total = tl.zeros([N, N], tl.float32)
    for step in range(0, steps):
        part = tl.load(p_y + step * N * N + i, mask=i < N * N // 2, other=0.0)
        total += tl.dot(tl.load(p_x + i), part, input_precision=PRECISION)
    tl.store(p_out + i, total)


class Case:
    op, name, fixed = "op", "case", ()

    def __init__(self, size, precision, steps=3):
        self.size, self.precision, self.steps = size, precision, steps

    def images(self, batch):
        return batch

    def inputs(self, batch, **factory):
        shape = self.steps, self.size, self.size
        return {"x": torch.empty(shape[1:], **factory), "y": torch.empty(shape, **factory)}

    def run(self, impl, x, y):
        out = (x + y.sum()).detach()
        arguments = {"N": self.size, "PRECISION": self.precision, "steps": self.steps}
        launch(product, (1,), p_x=x, p_y=y, p_out=out, **arguments)
        return x + y.sum()


def only(*case, dtype="fp32"):
    (row,) = audit.audit([Case(*case)], ["sm_80"], [dtype])
    return row


good = only(32, "tf32x3")
assert good["error"] is None and good["tensor_core_instructions"], good
# In each of three steps x and half of a y are read, and the output is written.
assert good["moved_exactly"]
assert abs(good["mib_moved"] - (3 * 1.5 + 1) * 32 * 32 * 4 / 2**20) < 1e-3, good
assert "without tensor cores" in only(32, "ieee")["error"]
spilled = only(128, "tf32x3")
assert f"spills {spilled['spilled_bytes']} bytes" in spilled["error"], spilled
assert "does not compile" in only(32, "nonsense")["error"]
one = only(32, "tf32x3", 1)
assert one["error"] is None
"""


def test_faults_are_found(tmp_path):
    script = tmp_path / "faults.py"
    script.write_text(FAULTS)
    done = compile_in_another_process(str(script))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("target", "registers", "warps", "shared", "expected"),
    [
        ("sm_80", 32, 4, 0, 1.0),
        ("sm_80", 168, 4, 20480, 12 / 64),
        ("sm_80", 255, 8, 0, 8 / 64),
        ("sm_80", 64, 8, 80 << 10, 16 / 64),
        ("sm_80", 64, 8, 164 << 10, 0.0),
        ("sm_90", 64, 8, 164 << 10, 8 / 64),
        ("sm_86", 40, 4, 0, 48 / 48),
        ("gfx942", 128, 4, 0, 16 / 32),
        ("gfx942", 264, 4, 0, 4 / 32),
    ],
)
def test_occupancy_follows_the_limits(target, registers, warps, shared, expected):
    row = {"registers": registers, "num_warps": warps, "shared_bytes": shared}
    assert occupancy(row, TARGETS[target]) == expected


def test_interpreted_kernels_are_not_audited(capsys):
    assert audit.main(["window_attention"]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_unknown_targets_are_named():
    done = run_audit("window_attention", "--targets", "sm_10")
    assert done.returncode == 2
    assert "no such target: sm_10; there are sm_80" in done.stderr
