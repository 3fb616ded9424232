"""mmcv's public functions over our extension, against compiled mmcv and independent definitions."""

import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision

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


def random_boxes(n, size=40.0):
    low, extent = torch.rand(n, 2) * size, torch.rand(n, 2) * size / 2
    return torch.cat((low, low + extent), 1)


def random_rois(n, images, size=40.0):
    return torch.cat((torch.randint(images, (n, 1)), random_boxes(n, size)), 1)


def iou(a, b, offset=0):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area_a, area_b = ((c[2] - c[0] + offset) * (c[3] - c[1] + offset) for c in (a, b))
    return width * height / (area_a + area_b - width * height)


def greedy(boxes, scores, suppressed):
    """Groups of greedy suppression by its definition: kept box first, those it takes out after."""
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    groups = []
    while left:
        best, *rest = left
        groups.append([best] + [i for i in rest if suppressed(boxes[best], boxes[i])])
        left = [i for i in rest if i not in groups[-1]]
    return groups


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_its_definition_keeps(offset):
    boxes, scores = random_boxes(80), torch.rand(80)
    groups = greedy(boxes.tolist(), scores.tolist(), lambda a, b: iou(a, b, offset) > 0.3)
    assert ops.nms(boxes, scores, 0.3, offset)[1].tolist() == [group[0] for group in groups]


def test_nms_match_groups_what_its_definition_groups():
    boxes, scores = random_boxes(80), torch.rand(80)
    groups = greedy(boxes.tolist(), scores.tolist(), lambda a, b: iou(a, b) >= 0.3)
    found = ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.3)
    assert [group.tolist() for group in found] == groups


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms_lowers_scores_by_its_definition(method, offset):
    boxes, scores = random_boxes(50), torch.rand(50)
    left = dict(enumerate(scores.double().tolist()))
    corners, expected = boxes.tolist(), []
    while left:
        best = max(left, key=left.get)
        expected.append((best, left.pop(best)))
        for i in left:
            overlap = iou(corners[best], corners[i], offset)
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                left[i] *= 1 - overlap if method == "linear" else 0
        left = {i: score for i, score in left.items() if score >= 0.05}
    dets, index = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert index.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([s for _, s in expected]))
    torch.testing.assert_close(dets[:, :4], boxes[index])


def test_suppression_of_nothing_is_nothing():
    boxes, scores = torch.zeros(0, 4), torch.zeros(0)
    for function in (ops.nms, ops.soft_nms):
        dets, index = function(boxes, scores, 0.5)
        assert dets.shape == (0, 5)
        assert index.shape == (0,)


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("offset", [0, 1])
def test_overlaps_follow_their_definition(mode, aligned, offset):
    a, b = random_boxes(7), random_boxes(7)
    out = ops.bbox_overlaps(a, b, mode, aligned, offset)
    for i, j in [(i, i) for i in range(7)] if aligned else np.ndindex(7, 7):
        expected = iou(a[i].tolist(), b[j].tolist(), offset)
        if mode == "iof":
            area_a, area_b = (((c[2:] - c[:2]) + offset).prod().item() for c in (a[i], b[j]))
            expected = expected * (area_a + area_b) / (1 + expected) / area_a
        assert (out[i] if aligned else out[i, j]).item() == pytest.approx(expected, abs=1e-5)


def random_rotated(n):
    return torch.cat(
        (torch.rand(n, 2) * 20, 1 + torch.rand(n, 2) * 15, (torch.rand(n, 1) - 0.5) * 7), 1
    )


def rotated_intersection(a, b):
    a, b = (((x, y), (w, h), np.degrees(t)) for x, y, w, h, t in (a.tolist(), b.tolist()))
    points = cv2.rotatedRectangleIntersection(a, b)[1]
    return 0.0 if points is None else cv2.contourArea(cv2.convexHull(points))


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("clockwise", [True, False])
def test_rotated_overlaps_agree_with_opencv(mode, clockwise):
    a, b = random_rotated(12), random_rotated(9)
    out = ops.box_iou_rotated(a, b, mode, clockwise=clockwise)
    turn = torch.tensor([1, 1, 1, 1, 1.0 if clockwise else -1.0])
    for i, j in np.ndindex(12, 9):
        common = rotated_intersection(a[i] * turn, b[j] * turn)
        area_a, area_b = a[i, 2:4].prod().item(), b[j, 2:4].prod().item()
        base = area_a if mode == "iof" else area_a + area_b - common
        assert out[i, j].item() == pytest.approx(common / base, abs=1e-3)
    torch.testing.assert_close(
        ops.box_iou_rotated(a[:9], b, mode, True, clockwise), out[:9].diagonal()
    )


def test_rotated_overlaps_of_special_pairs():
    box = torch.tensor([[5.0, 5, 4, 2, 0.3]])
    others = torch.tensor(
        [
            [5, 5, 4, 2, 0.3],
            [5, 5, 4, 2, 0.3 + np.pi],
            [5, 5, 2, 1, 0.3],
            [50, 5, 4, 2, 0.3],
            [5, 5, 0, 2, 0],
        ],
        dtype=torch.float32,
    )
    out = ops.box_iou_rotated(box, others)
    torch.testing.assert_close(out, torch.tensor([[1, 1, 0.25, 0, 0]]), atol=1e-4, rtol=0)
    assert ops.box_iou_rotated(box, others[:0]).shape == (1, 0)


def test_rotated_nms_keeps_what_its_definition_keeps():
    boxes, scores = random_rotated(60), torch.rand(60)

    def suppressed(i, j):
        a, b = boxes[i], boxes[j]
        common = rotated_intersection(a, b)
        return common / (a[2] * a[3] + b[2] * b[3] - common).item() >= 0.3

    groups = greedy(range(60), scores.tolist(), suppressed)
    assert ops.nms_rotated(boxes, scores, 0.3)[1].tolist() == [group[0] for group in groups]


@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_average_roi_align_is_torchvisions(sampling_ratio, aligned):
    x, rois = torch.randn(2, 3, 14, 18), random_rois(6, 2)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = ops.roi_align(ours, rois, (3, 4), 0.4, sampling_ratio, "avg", aligned)
    expected = torchvision.ops.roi_align(theirs, rois, (3, 4), 0.4, sampling_ratio, aligned)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("aligned", [False, True])
def test_largest_of_one_sample_is_their_average(aligned):
    x, rois = torch.randn(2, 3, 14, 18), random_rois(6, 2)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    largest = ops.roi_align(one, rois, (3, 4), 0.4, 1, "max", aligned)
    average = ops.roi_align(other, rois, (3, 4), 0.4, 1, "avg", aligned)
    torch.testing.assert_close(largest, average)
    upstream = torch.randn_like(largest)
    largest.backward(upstream)
    average.backward(upstream)
    torch.testing.assert_close(one.grad, other.grad)


def test_largest_sample_is_that_of_as_many_finer_bins():
    x, rois = torch.randn(2, 3, 14, 18), random_rois(6, 2)
    fine = ops.roi_align(x, rois, (6, 8), 0.4, 1, "avg")
    largest = ops.roi_align(x, rois, (3, 4), 0.4, 2, "max")
    torch.testing.assert_close(largest, torch.nn.functional.max_pool2d(fine, 2))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_derivative_is_numerical(mode, sampling_ratio):
    x, rois = torch.randn(2, 2, 6, 7, dtype=torch.double), random_rois(4, 2, 12.0).double()
    x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: ops.roi_align(t, rois, (2, 3), 0.5, sampling_ratio, mode, True), (x,)
    )


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_of_nothing_is_nothing(mode):
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    out = ops.roi_align(x, torch.zeros(0, 5), (2, 2), 1.0, 0, mode, True)
    assert out.shape == (0, 2, 2, 2)
    out.sum().backward()
    assert not x.grad.any()


def test_roi_align_takes_inputs_and_gradients_of_any_strides():
    x, rois = torch.randn(2, 4, 9, 8), random_rois(5, 2)
    for mode in ("avg", "max"):
        grads = []
        for layout in (torch.contiguous_format, torch.channels_last):
            leaf = x.clone(memory_format=layout).requires_grad_()
            out = ops.roi_align(leaf, rois, 3, 0.3, 2, mode)
            (out.transpose(2, 3) * torch.arange(9.0).view(3, 3)).sum().backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(*grads)


def test_negative_region_is_refused():
    with pytest.raises(RuntimeError, match="negative size"):
        ops.roi_align(torch.zeros(1, 1, 4, 4), torch.tensor([[0.0, 3, 3, 1, 1]]), 2)


def test_roi_pool_takes_the_largest_pixel_of_each_bin():
    x, rois = torch.randn(2, 3, 9, 11), random_rois(7, 2, 30.0)
    rois[0, 1:] = torch.tensor([100.0, 100, 120, 120])
    leaf = x.clone().requires_grad_()
    out = ops.roi_pool(leaf, rois, (2, 3), 0.4)
    expected_grad = torch.zeros_like(x)
    scale = np.float32(0.4)
    for n, c, i, j in np.ndindex(*out.shape):
        image = int(rois[n, 0])
        x1, y1, x2, y2 = rois[n, 1:].numpy() + np.float32([0, 0, 1, 1])
        x1, y1, x2, y2 = x1 * scale, y1 * scale, x2 * scale, y2 * scale
        left, right = (np.floor(x1 + j * (x2 - x1) / 3), np.ceil(x1 + (j + 1) * (x2 - x1) / 3))
        top, bottom = (np.floor(y1 + i * (y2 - y1) / 2), np.ceil(y1 + (i + 1) * (y2 - y1) / 2))
        pixels = [
            (h, w) for h in range(9) for w in range(11) if top <= h < bottom and left <= w < right
        ]
        if not pixels:
            assert out[n, c, i, j] == 0
            continue
        best = max(pixels, key=lambda p: x[image, c, p[0], p[1]])
        assert out[n, c, i, j] == x[image, c, best[0], best[1]]
        expected_grad[image, c, best[0], best[1]] += 1
    out.sum().backward()
    torch.testing.assert_close(leaf.grad, expected_grad)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_sigmoid_focal_loss_is_torchvisions(gamma):
    logits, target = torch.randn(20, 5, dtype=torch.double) * 3, torch.randint(0, 6, (20,))
    weight = torch.rand(6, dtype=torch.double)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = ops.sigmoid_focal_loss(ours, target, gamma, 0.25, None, "none")
    hot = torch.nn.functional.one_hot(target, 6)[:, :5].double()
    expected = torchvision.ops.sigmoid_focal_loss(theirs, hot, 0.25, gamma)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    known = target < 5
    weighted = ops.sigmoid_focal_loss(logits[known], target[known], gamma, 0.25, weight[:5], "none")
    torch.testing.assert_close(weighted, expected[known] * weight[target[known]][:, None])


def test_softmax_focal_loss_is_weighted_cross_entropy():
    logits, target = torch.randn(20, 5, dtype=torch.double), torch.randint(0, 5, (20,))
    weight = torch.rand(5, dtype=torch.double)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = ops.softmax_focal_loss(ours, target, 2.0, 0.25, weight, "mean")
    entropy = torch.nn.functional.cross_entropy(theirs, target, reduction="none")
    expected = (0.25 * (1 - (-entropy).exp()) ** 2 * entropy * weight[target]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_softmax_focal_loss_ignores_negative_targets():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = ops.softmax_focal_loss(logits, torch.tensor([1, -1, 2]), 2.0, 0.25, None, "sum")
    loss.backward()
    assert not logits.grad[1].any()
    assert logits.grad[0].any()


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_deformable_convolution_without_offsets_is_convolution(groups, deform_groups):
    x, weight = torch.randn(2, 4, 7, 8), torch.randn(6, 4 // groups, 3, 2)
    conv = {"stride": (1, 2), "padding": (1, 0), "dilation": (2, 1)}
    expected = torch.nn.functional.conv2d(x, weight, groups=groups, **conv)
    offset = torch.zeros(2, 2 * deform_groups * 6, *expected.shape[2:])
    args = (*conv.values(), groups, deform_groups)
    plain = ops.deform_conv2d(x, offset, weight, *args)
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
    mask, bias = torch.ones(2, deform_groups * 6, *expected.shape[2:]), torch.randn(6)
    modulated = ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *args)
    torch.testing.assert_close(modulated, expected + bias[:, None, None], rtol=1e-4, atol=1e-4)


def deformable_inputs(groups, deform_groups):
    shapes = (
        (2, 4, 4, 5),
        (2, 2 * deform_groups * 4, 3, 4),
        (2, deform_groups * 4, 3, 4),
        (4, 4 // groups, 2, 2),
        (4,),
    )
    return [torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 2), (2, 1)])
def test_deformable_derivatives_are_numerical(groups, deform_groups):
    x, offset, mask, weight, bias = deformable_inputs(groups, deform_groups)
    args = (1, 0, 1, groups, deform_groups)
    assert torch.autograd.gradcheck(
        lambda *t: ops.deform_conv2d(*t, *args), (x, offset, weight), fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda *t: ops.modulated_deform_conv2d(*t, *args),
        (x, offset, mask, weight, bias),
        fast_mode=True,
    )
    assert torch.autograd.gradcheck(
        lambda *t: ops.modulated_deform_conv2d(*t, None, *args),
        (x, offset, mask, weight),
        fast_mode=True,
    )


def test_deformable_convolution_refuses_channels_that_do_not_fit():
    with pytest.raises(RuntimeError, match="input planes, expected: 4, but got: 3"):
        ops.deform_conv2d(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(2, 4, 1, 1))


def test_deformable_attention_derivatives_are_numerical():
    shapes = torch.tensor([[3, 4], [2, 2]])
    value, loc, weights = (
        torch.rand(*shape, dtype=torch.double, requires_grad=True)
        for shape in ((2, 16, 2, 3), (2, 4, 2, 2, 2, 2), (2, 4, 2, 2, 2))
    )
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    assert torch.autograd.gradcheck(
        lambda v, at, w: function.apply(v, shapes, torch.tensor([0, 12]), at, w, 64),
        (value, loc, weights),
    )


@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 1), (1, 4, 3)])
def test_carafe_sums_weighted_neighborhoods(kernel, groups, scale):
    x = torch.randn(2, 4, 3, 5, dtype=torch.double, requires_grad=True)
    shape = (2, groups * kernel**2, 3 * scale, 5 * scale)
    masks = torch.randn(shape, dtype=torch.double, requires_grad=True)
    out = ops.carafe(x, masks, kernel, groups, scale)
    torch.testing.assert_close(ops.carafe_naive(x, masks, kernel, groups, scale), out)
    reach = kernel // 2
    for n, c, h, w in np.ndindex(*out.shape):
        expected = 0.0
        for i, j in np.ndindex(kernel, kernel):
            y, z = h // scale + i - reach, w // scale + j - reach
            if 0 <= y < 3 and 0 <= z < 5:
                tap = (c // (4 // groups) * kernel + i) * kernel + j
                expected += (masks[n, tap, h, w] * x[n, c, y, z]).item()
        assert out[n, c, h, w].item() == pytest.approx(expected)
    assert torch.autograd.gradcheck(
        lambda *t: ops.carafe(*t, kernel, groups, scale), (x, masks), fast_mode=True
    )


def test_offsets_have_no_gradient_where_samples_lie_a_pixel_outside():
    offset = torch.zeros(1, 18, 4, 4, requires_grad=True)
    ops.deform_conv2d(
        torch.rand(1, 1, 4, 4) + 1, offset, torch.ones(1, 1, 3, 3), 1, 1
    ).sum().backward()
    corner = offset.grad.view(3, 3, 2, 4, 4)[0, 0]
    assert not corner[:, 0].any()
    assert not corner[:, :, 0].any()
    assert corner[:, 1:, 1:].any()


@pytest.mark.parametrize("collect", [True, False])
@pytest.mark.parametrize("mask", [(3, 5), (7, 9), (2, 4)])
def test_psa_mask_spreads_each_pixels_mask_over_the_map(collect, mask):
    x = torch.randn(2, mask[0] * mask[1], 4, 5, dtype=torch.double, requires_grad=True)
    spread = ops.PSAMask("collect" if collect else "distribute", mask)
    out = spread(x)
    expected = torch.zeros(2, 20, 4, 5, dtype=torch.double)
    for i, j, h, w in np.ndindex(*mask, 4, 5):
        y, z = h + i - (mask[0] - 1) // 2, w + j - (mask[1] - 1) // 2
        if 0 <= y < 4 and 0 <= z < 5:
            value = x[:, i * mask[1] + j, h, w].detach()
            if collect:
                expected[:, y * 5 + z, h, w] = value
            else:
                expected[:, h * 5 + w, y, z] = value
    torch.testing.assert_close(out.detach(), expected)
    assert torch.autograd.gradcheck(spread, (x,), fast_mode=True)


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), ((1, 5), (0, 2))])
def test_masked_convolution_is_convolution_where_the_mask_is_set(kernel, padding):
    x, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.6
    conv = torch.nn.Conv2d(3, 4, kernel, padding=padding)
    out = ops.MaskedConv2d(3, 4, kernel, padding=padding)
    out.load_state_dict(conv.state_dict())
    torch.testing.assert_close(out(x, mask.float()), conv(x) * mask, rtol=1e-4, atol=1e-5)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "module", ["mmdet.models", pytest.param("mmseg.models", marks=pytest.mark.slow)]
)
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
