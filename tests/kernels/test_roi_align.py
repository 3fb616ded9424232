"""RoIAlign against its definition by loops and torchvision, and all implementations against it."""

import math

import pytest
import torch
import torchvision
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from torch.library import opcheck

from visattn.kernels import roi_align, use_impl

FUSED = ["cpu", "triton"]

# batch, channels, height, width, regions, size, scale, sampling_ratio, aligned, channels last
GEOMETRIES = {
    "plain": (2, 16, 8, 8, 4, (3, 3), 1.0, 2, True, False),
    "adaptive": (2, 5, 7, 21, 5, (2, 4), 0.5, 0, True, False),
    "legacy": (1, 3, 11, 6, 5, (3, 2), 0.25, 0, False, False),
    "channels_last": (2, 21, 5, 7, 3, (3, 2), 1.0, 3, True, True),
    "channels_last_adaptive": (1, 35, 12, 5, 5, (1, 5), 0.5, 0, False, True),
    "one_bin": (2, 18, 6, 40, 3, (1, 1), 1.0, 0, True, False),
    "many_bins": (1, 2, 5, 6, 2, (3, 37), 1.0, 2, True, False),
    "many_channels": (1, 70, 3, 18, 2, (2, 2), 1.0, 1, True, True),
    "one_pixel": (1, 4, 1, 1, 3, (2, 2), 1.0, 2, True, False),
    "many_samples": (1, 1, 4, 5, 3, (2, 1), 1.0, 9, True, False),
}


def random_boxes(batch, height, width, count, scale):
    """Regions that reach over all borders, in no order of images."""
    extent = torch.rand(count, 2) * torch.tensor([width, height])
    corner = torch.rand(count, 2) * (torch.tensor([width, height]) + 3) - 3
    boxes = torch.cat((corner, corner + extent + 0.1), 1) / scale
    return torch.cat((torch.randint(batch, (count, 1)), boxes), 1)


def make(name, dtype=torch.float32):
    batch, channels, height, width, count, size, *rest, last = GEOMETRIES[name]
    x = torch.randn(batch, channels, height, width, dtype=dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    boxes = random_boxes(batch, height, width, count, rest[0])

    def op(impl, x):
        return roi_align(x, boxes, size, *rest, impl=impl)

    return op, {"x": x}, (boxes, size, *rest)


def by_loops(x, boxes, size, scale, sampling_ratio, aligned):
    """Every bin, its samples one at a time."""
    height, width = x.shape[2:]
    shift = 0.5 if aligned else 0.0
    out = x.new_zeros(len(boxes), x.shape[1], *size)
    for r, (image, *corners) in enumerate(boxes.tolist()):
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        steps = [
            (extent if aligned else max(extent, 1.0)) / bins
            for extent, bins in zip((y2 - y1, x2 - x1), size, strict=True)
        ]
        counts = [sampling_ratio or math.ceil(step) for step in steps]
        for i in range(size[0]):
            for j in range(size[1]):
                for sy in range(counts[0]):
                    for sx in range(counts[1]):
                        y = y1 + (i + (sy + 0.5) / counts[0]) * steps[0]
                        x_ = x1 + (j + (sx + 0.5) / counts[1]) * steps[1]
                        sample = bilinear(x[int(image)], y, x_, height, width)
                        out[r, :, i, j] += sample / (counts[0] * counts[1])
    return out


def bilinear(plane, y, x, height, width):
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    return (
        (1 - down) * (1 - along) * plane[:, top, left]
        + (1 - down) * along * plane[:, top, right]
        + down * (1 - along) * plane[:, bottom, left]
        + down * along * plane[:, bottom, right]
    )


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_is_the_definition(name):
    op, inputs, (boxes, *rest) = make(name, torch.float64)
    torch.testing.assert_close(op("reference", **inputs), by_loops(inputs["x"], boxes, *rest))


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("impl, dtype", [("reference", torch.float64), ("cpu", torch.float32)])
def test_is_torchvisions(impl, dtype, name):
    op, inputs, (boxes, size, scale, ratio, aligned) = make(name, dtype)

    def peer(x):
        return torchvision.ops.roi_align(x, boxes.to(dtype), size, scale, ratio, aligned)

    wanted = gradients(peer, inputs)
    for key, value in gradients(lambda x: op(impl, x), inputs).items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_whole_numbers_are_torchvisions(impl, ratio, aligned):
    """Samples on the border, bins of whole pixels, regions without area or turned around."""
    boxes = torch.tensor(
        [
            [0, 0, 0, 8, 6],
            [0, -1, -1, 7, 5],
            [0, 2, 1, 4, 3],
            [0, 3, 3, 3, 3],
            [0, 5, 4, 1, 2],
            [0, 9, 7, 20, 20],
            [0, -9, -7, -1, -1],
            [0, -200, -100, 200, 100],
        ],
        dtype=torch.float32,
    )
    x = torch.randn(1, 3, 6, 8)

    def peer(x):
        return torchvision.ops.roi_align(x, boxes, 2, 1.0, ratio, aligned)

    wanted = gradients(peer, {"x": x})
    actual = gradients(lambda x: roi_align(x, boxes, 2, 1.0, ratio, aligned, impl=impl), {"x": x})
    for key, value in actual.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("impl", FUSED)
def test_is_as_exact_as_the_reference(impl, name, dtype):
    op, inputs, _ = make(name, dtype)
    assert_as_exact_as_reference(op, inputs, impl)


def test_at_detections_size():
    """Blocks of planes, chunks of boxes and threads, all more than one."""
    x = torch.randn(2, 40, 61, 150)
    boxes = random_boxes(2, 61, 150, 70, 0.25)
    for x_ in (x, x.contiguous(memory_format=torch.channels_last)):
        wanted = gradients(
            lambda x: torchvision.ops.roi_align(x, boxes, 7, 0.25, 2, True), {"x": x_}
        )
        actual = gradients(lambda x: roi_align(x, boxes, 7, 0.25, 2, impl="cpu"), {"x": x_})
        for key, value in actual.items():
            torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_boxes_in_any_form(impl):
    x = torch.randn(2, 3, 6, 7)
    boxes = random_boxes(2, 6, 7, 4, 1.0)[:, 1:]
    rows = torch.cat((torch.tensor([[0.0], [0], [1], [1]]), boxes), 1)
    wanted = roi_align(x, rows, 2, impl=impl)
    for form in (boxes.view(2, 2, 4), [boxes[:2], boxes[2:]], rows.double()):
        assert torch.equal(roi_align(x, form, 2, impl=impl), wanted)
    uneven = roi_align(x, [boxes[:0], boxes], 2, impl=impl)
    assert torch.equal(uneven[2:], wanted[2:])


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_channels_stay_last(impl):
    op, inputs, (_, (rows, columns), *_) = make("channels_last")
    x = inputs["x"].requires_grad_()
    out = op(impl, x)
    assert out.stride() == (21 * rows * columns, 1, 21 * columns, 21)
    torch.testing.assert_close(out, op(impl, x.contiguous()), rtol=1e-5, atol=1e-6)
    out.sum().backward()
    assert impl == "reference" or x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", FUSED)
def test_any_strides(impl):
    op, inputs, _ = make("channels_last")
    x = inputs["x"]
    tokens = torch.cat((torch.randn(2, 1, 21), x.flatten(2).transpose(1, 2)), 1)
    views = (
        tokens[:, 1:].transpose(1, 2).unflatten(2, (5, 7)),
        torch.stack((x, x), -1)[..., 0],
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.randn(2, 30, 9, 16)[:, 5:26, 1:6, 3:10].copy_(x),
    )
    upstream = torch.randn(op(impl, x).shape)
    wanted = torch.autograd.grad(op(impl, x.requires_grad_()), x, upstream)[0]
    for view in views:
        view = view.detach().requires_grad_()
        out = op(impl, view)
        torch.testing.assert_close(out, op(impl, x), rtol=1e-5, atol=1e-6)
        spread = torch.stack((upstream, upstream), -1)[..., 0]
        grad = torch.autograd.grad(out, view, spread)[0]
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", FUSED)
def test_nothing_to_pool(impl):
    boxes = random_boxes(2, 6, 6, 3, 1.0)
    for x, rois in (
        (torch.randn(2, 3, 6, 6), boxes[:0]),
        (torch.randn(0, 3, 6, 6), boxes[:0]),
        (torch.randn(2, 0, 6, 6), boxes),
        (torch.randn(2, 3, 6, 6), []),
    ):
        results = gradients(lambda x, rois=rois: roi_align(x, rois, 2, impl=impl), {"x": x})
        assert results["out"].shape == (len(rois), x.shape[1], 2, 2)
        assert not results["x"].any()


@pytest.mark.filterwarnings("ignore:.* encountered in")
@pytest.mark.parametrize("ratio", [0, 2, 100])
@pytest.mark.parametrize("impl", FUSED)
def test_boxes_beyond_reason(impl, ratio):
    """Neither do billions of samples take time, nor numbers that are none harm."""
    x = torch.randn(1, 2, 4, 5)
    boxes = torch.tensor(
        [[0, -1e9, -1e9, 1e9, 1e9], [0, float("nan"), 0, 3, 3], [0, 0, 0, float("inf"), 2]]
    )
    out = roi_align(x, boxes, 2, 1.0, ratio, impl=impl)
    assert out.isfinite().all()
    assert not out[1:].any()


def test_values_outside_a_region_do_not_matter():
    x = torch.randn(1, 3, 9, 9)
    hole = x.clone()
    hole[..., 6:] = float("nan")
    boxes = torch.tensor([[0, 1.0, 1, 5, 5]])
    assert torch.equal(roi_align(x, boxes, 3, impl="cpu"), roi_align(hole, boxes, 3, impl="cpu"))


@pytest.mark.parametrize("name", ["plain", "channels_last"])
@pytest.mark.parametrize("impl", FUSED)
def test_is_deterministic_for_any_number_of_threads(impl, name):
    op, inputs, _ = make(name)
    assert_deterministic(lambda x: op(impl, x), inputs)


@pytest.mark.parametrize("impl", FUSED)
def test_large_offsets(impl):
    """Rows further apart than 32 bits count, in memory that is mapped but hardly touched."""
    row = 2**29 + 16
    storage = torch.empty(5 * row + 64)
    x = storage.as_strided((1, 2, 6, 8), (0, 16, row, 1))
    small = torch.randn(1, 2, 6, 8)
    x.copy_(small)
    boxes = torch.tensor([[0, 1.0, 2, 7, 6]])
    torch.testing.assert_close(
        roi_align(x, boxes, 2, impl=impl), roi_align(small, boxes, 2, impl="reference")
    )


@pytest.mark.parametrize("name", ["adaptive", "channels_last"])
@pytest.mark.parametrize("impl", FUSED)
def test_operators_are_registered_rightly(impl, name):
    _, inputs, (boxes, *rest) = make(name)
    x = inputs["x"].requires_grad_()
    opcheck(torch.ops.visattn.roi_align.default, (x, boxes, *rest, impl))


def test_compiles_whole_for_any_size():
    op, inputs, (boxes, size, *rest) = make("channels_last")

    def twice(x, boxes):
        first = roi_align(x, boxes, size, *rest, impl="cpu")
        return first * roi_align(x * 2, boxes, size, *rest, impl="cpu")

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    wanted = gradients(lambda x: twice(x, boxes), inputs)
    for name, value in gradients(lambda x: compiled(x, boxes), inputs).items():
        torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")
    x, boxes = torch.randn(3, 5, 13, 8), random_boxes(3, 13, 8, 9, 1.0)
    torch.testing.assert_close(compiled(x, boxes), twice(x, boxes))


def test_exports_plain_torch_unless_told():
    class Model(torch.nn.Module):
        def forward(self, x, boxes):
            return roi_align(x, boxes, 3, 0.5)

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    x, boxes = torch.randn(2, 3, 12, 10), random_boxes(2, 12, 10, 8, 0.5)[:, 1:].view(2, 4, 4)
    dims = torch.export.Dim.AUTO
    shapes = ({0: dims, 2: dims, 3: dims}, {0: dims, 1: dims})
    plain = torch.export.export(Model(), (x, boxes), dynamic_shapes=shapes)
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), (x, boxes), dynamic_shapes=shapes)
    assert any("visattn" in name for name in operators(fused))
    x, boxes = torch.randn(3, 3, 20, 9), random_boxes(3, 20, 9, 9, 0.5)[:, 1:].view(3, 3, 4)
    torch.testing.assert_close(plain.module()(x, boxes), fused.module()(x, boxes))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_changes_nothing(impl):
    op, inputs, _ = make("adaptive")
    wanted = op(impl, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op(impl, **inputs), wanted)


def test_half_precision_has_exact_coordinates():
    """Samples near pixel 300, where neighbouring numbers of 16 bits are 2 pixels apart."""
    x = torch.arange(400, dtype=torch.bfloat16).div(400).round(decimals=1).expand(1, 2, 4, 400)
    boxes = torch.tensor([[0, 291.3, 0, 308.9, 4]])
    for impl in ("reference", *FUSED):
        wanted = roi_align(x.float(), boxes, 3, impl="reference")
        torch.testing.assert_close(
            roi_align(x, boxes, 3, impl=impl).float(), wanted, rtol=2**-7, atol=0
        )


def test_second_derivatives_need_the_reference():
    op, inputs, _ = make("plain")
    x = inputs["x"].requires_grad_()

    def slope(impl):
        return torch.autograd.grad(op(impl, x).square().sum(), x, create_graph=True)[0]

    assert torch.autograd.grad(slope("reference").sum(), x)[0].isfinite().all()
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope("cpu").sum(), x)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_boxes_have_no_gradient(impl):
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    boxes = torch.tensor([[0, 1.0, 1, 4, 4]], requires_grad=True)
    out = roi_align(x, boxes, 2, impl=impl)
    assert torch.autograd.grad(out.sum(), (x, boxes), allow_unused=True)[1] is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.randn(3, 5, 5)}, r"x must be \(B, C, H, W\)"),
        ({"x": torch.zeros(1, 3, 5, 5, dtype=torch.long)}, "floating-point"),
        ({"x": torch.randn(1, 3, 0, 5)}, "at least one pixel"),
        ({"boxes": torch.zeros(2, 4)}, r"boxes must be \(R, 5\)"),
        ({"boxes": [torch.zeros(2, 5)]}, r"boxes\[0\] must be \(R, 4\)"),
        ({"boxes": torch.tensor([[1.0, 0, 0, 2, 2]])}, "indices of the 1 images.* from 1 to 1"),
        ({"boxes": torch.tensor([[-1.0, 0, 0, 2, 2]])}, "indices of the 1 images"),
        ({"boxes": [torch.zeros(1, 4)] * 2}, "indices of the 1 images"),
        ({"output_size": 0}, "output_size must be"),
        ({"output_size": (2, 2, 2)}, "output_size must be"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_bad_input(change, message):
    good = {"x": torch.randn(1, 3, 5, 5), "boxes": torch.zeros(1, 5), "output_size": 2}
    with pytest.raises(ValueError, match=message):
        roi_align(**{**good, **change})


def test_an_implementation_that_cannot_run_says_why():
    x = torch.randn(1, 3, 5, 5)
    with pytest.raises(RuntimeError, match="no implementation 'natten'"):
        roi_align(x, torch.zeros(1, 5), 2, impl="natten")
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        roi_align(x.double(), torch.zeros(1, 5), 2, impl="cpu")
