"""mmcv's public functions over our extension, against compiled mmcv and independent definitions."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from visattn.zoo.openmm.mmcv_ops import install

install()

from mmcv import ops  # noqa: E402

GOLDENS = Path(__file__).parents[2] / "goldens"
CASES = {
    case["name"]: case["kwargs"]
    for case in json.loads((GOLDENS / "mmcv_ops.json").read_text())["cases"]
}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDENS / "mmcv_ops.npz"))


def close(actual, expected):
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def inputs(golden, case):
    start = f"{case}/in/"
    return [torch.from_numpy(v) for k, v in golden.items() if k.startswith(start)]


@pytest.mark.parametrize("case", [c for c in CASES if "nms" in c])
def test_suppression_is_that_of_compiled_mmcv(golden, case):
    function = ops.soft_nms if case.startswith("soft") else ops.nms
    dets, index = function(*inputs(golden, case), **CASES[case])
    assert index.tolist() == golden[f"{case}/out/inds"].tolist()
    close(dets, golden[f"{case}/out/dets"])


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("roi_align")])
def test_roi_align_is_that_of_compiled_mmcv(golden, case):
    x, rois = inputs(golden, case)
    x.requires_grad_()
    out = ops.roi_align(x, rois, *CASES[case].values())
    close(out.detach(), golden[f"{case}/out/output"])
    upstream = np.random.RandomState(1).standard_normal(out.shape).astype(np.float32)
    out.backward(torch.from_numpy(upstream))
    close(x.grad, golden[f"{case}/out/grad_input"])


def test_deform_conv_is_that_of_compiled_mmcv(golden):
    case = "deform_conv2d"
    x, offset, weight = (t.requires_grad_() for t in inputs(golden, case))
    out = ops.deform_conv2d(x, offset, weight, *CASES[case].values())
    torch.testing.assert_close(
        out.detach(), torch.from_numpy(golden[f"{case}/out/output"]), rtol=1e-4, atol=1e-4
    )
    out.sum().backward()
    for name, tensor in (("input", x), ("offset", offset), ("weight", weight)):
        expected = torch.from_numpy(golden[f"{case}/out/grad_{name}"])
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-4, atol=1e-3)


def test_deformable_attention_is_that_of_compiled_mmcv(golden):
    value, shapes, start, loc, weights = inputs(golden, "ms_deform_attn")
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    out = function.apply(value, shapes, start, loc, weights, 64)
    close(out, golden["ms_deform_attn/out/output"])


def test_overlaps_are_those_of_compiled_mmcv(golden):
    close(ops.bbox_overlaps(*inputs(golden, "bbox_overlaps")), golden["bbox_overlaps/out/iou"])


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("module", ["mmdet.models", "mmseg.models"])
def test_openmm_imports_in_a_fresh_interpreter(module):
    result = run(
        f"from visattn.zoo.openmm.mmcv_ops import install; assert install(); import {module}"
    )
    assert result.returncode == 0, result.stderr


def test_installing_twice_changes_nothing():
    module = sys.modules["mmcv._ext"]
    assert install()
    assert sys.modules["mmcv._ext"] is module


def test_steps_aside_for_compiled_operators():
    result = run(
        "import sys, types; sys.modules['mmcv._ext'] = there = types.ModuleType('mmcv._ext')\n"
        "from visattn.zoo.openmm.mmcv_ops import install\n"
        "assert install() is False and sys.modules['mmcv._ext'] is there"
    )
    assert result.returncode == 0, result.stderr


def test_missing_operator_names_itself_and_the_remedy():
    with pytest.raises(NotImplementedError, match=r"'tin_shift_forward'.*install"):
        ops.tin_shift(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, dtype=torch.int))
