"""ROI-Unpool against its definition by loops, and all implementations against it."""

import math

import pytest
import torch
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from torch.library import opcheck

from visattn.kernels import roi_align, roi_unpool, use_impl

FUSED = ["cpu", "triton"]
ALL = ["reference", *FUSED]

# regions, channels, bins, size, scale, mode, channels last
GEOMETRIES = {
    "plain": (3, 16, (5, 5), (8, 8), 1.0, "official", False),
    "plain_aligned": (3, 16, (5, 5), (8, 8), 1.0, "aligned", False),
    "oblong": (4, 5, (7, 2), (9, 21), 0.5, "official", False),
    "oblong_aligned": (3, 3, (2, 6), (6, 19), 0.25, "aligned", False),
    "channels_last": (3, 21, (4, 3), (5, 7), 1.0, "official", True),
    "channels_last_aligned": (2, 70, (3, 4), (7, 5), 0.5, "aligned", True),
    "one_bin": (3, 18, (1, 1), (6, 20), 1.0, "official", False),
    "one_bin_aligned": (3, 2, (1, 3), (6, 5), 1.0, "aligned", False),
    "many_bins": (2, 2, (3, 37), (4, 6), 1.0, "aligned", False),
    "one_pixel": (2, 4, (3, 2), (1, 1), 1.0, "official", False),
}


def make(name, dtype=torch.float32):
    count, channels, bins, (height, width), scale, mode, last = GEOMETRIES[name]
    rois = torch.randn(count, channels, *bins, dtype=dtype)
    if last:
        rois = rois.contiguous(memory_format=torch.channels_last)
    extent = torch.rand(count, 2) * torch.tensor([width, height])
    corner = torch.rand(count, 2) * (torch.tensor([width, height]) + 3) - 3
    boxes = torch.cat((corner, corner + extent + 0.7), 1) / scale

    def op(impl, rois):
        return roi_unpool(rois, boxes, (height, width), scale, mode, impl=impl)

    return op, {"rois": rois}, (boxes, (height, width), scale, mode)


def by_loops(rois, boxes, size, scale, mode):
    """Every pixel whose centre is inside, as the sheets of both modes have it."""
    bins = rois.shape[2:]
    out = rois.new_zeros(*rois.shape[:2], *size)
    for r, box in enumerate((boxes * scale).tolist()):
        for y in range(size[0]):
            for x in range(size[1]):
                places = [
                    place(pixel, box[axis], box[axis + 2], bins[1 - axis], mode)
                    for axis, pixel in ((1, y), (0, x))
                ]
                if None not in places:
                    out[r, :, y, x] = interpolate(rois[r], *places)
    return out


def place(pixel, start, stop, bins, mode):
    """Where a pixel is among the bins; None if it is not there at all."""
    first, behind = math.ceil(start - 0.5), math.ceil(stop - 0.5)
    if not first <= pixel < behind:
        return None
    if mode == "aligned":
        at = (pixel + 0.5 - start) / (stop - start) * bins - 0.5
        return min(max(at, 0.0), bins - 1.0)
    at = (pixel - first) / (behind - first) * bins
    return at if at <= bins - 1 + 1e-9 else None


def interpolate(plane, y, x):
    total = 0.0
    for row in range(plane.shape[1]):
        for column in range(plane.shape[2]):
            weight = max(1 - abs(y - row), 0) * max(1 - abs(x - column), 0)
            total = total + weight * plane[:, row, column]
    return total


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_is_the_definition(name):
    op, inputs, (boxes, *rest) = make(name, torch.float64)
    torch.testing.assert_close(
        op("reference", **inputs), by_loops(inputs["rois"], boxes.double(), *rest)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("impl", FUSED)
def test_is_as_exact_as_the_reference(impl, name, dtype):
    op, inputs, _ = make(name, dtype)
    assert_as_exact_as_reference(op, inputs, impl)


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("bins, lost", [(25, 2), (19, 3), (13, 4), (7, 9), (64, 0)])
def test_official_loses_a_strip(impl, bins, lost):
    """The rows and columns behind the centre of the last bin, as counted on the authors' kernel."""
    full = torch.tensor([[0.0, 0, 64, 64]])
    out = roi_unpool(torch.ones(1, 1, bins, bins), full, 64, impl=impl)[0, 0]
    assert out[: 64 - lost, : 64 - lost].eq(1).all()
    assert out.count_nonzero() == (64 - lost) ** 2
    aligned = roi_unpool(torch.ones(1, 1, bins, bins), full, 64, mode="aligned", impl=impl)
    assert aligned.eq(1).all()


@pytest.mark.parametrize("impl", ALL)
def test_official_rounds_boxes(impl):
    """Columns 12 to 49 and rows 6 to 36, less a strip, as counted on the authors' kernel."""
    boxes = torch.tensor([[100.0, 50, 400, 300]])
    out = roi_unpool(torch.ones(1, 1, 25, 25), boxes, 64, 1 / 8, impl=impl)[0, 0]
    rows, columns = out.nonzero().unbind(1)
    assert out.count_nonzero() == 1110
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 35, 12, 48)
    aligned = roi_unpool(torch.ones(1, 1, 25, 25), boxes, 64, 1 / 8, "aligned", impl=impl)[0, 0]
    rows, columns = aligned.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 36, 12, 49)


@pytest.mark.parametrize("mode, centre", [("official", 30.72), ("aligned", 31.5)])
def test_where_a_blob_comes_back(mode, centre):
    """After RoIAlign: as on the authors' kernel, or where it was."""
    at = torch.arange(64.0) - 31.5
    blob = torch.exp(-(at[:, None] ** 2 + at**2) / (2 * 6.0**2))
    full = torch.tensor([[0.0, 0, 0, 64, 64]])
    pooled = roi_align(blob[None, None], full, 25, sampling_ratio=2)
    back = roi_unpool(pooled, full, 64, mode=mode)[0, 0]
    mean = (back.sum(0) * torch.arange(64.0)).sum() / back.sum()
    torch.testing.assert_close(mean, torch.tensor(centre), atol=0.005, rtol=0)


@pytest.mark.parametrize("mode", ["official", "aligned"])
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_inverts_roi_align(impl, mode):
    x = torch.randn(1, 3, 9, 9)
    full = torch.tensor([[[0.0, 0, 9, 9]]])

    def there_and_back(x, boxes, bins, ratio):
        pooled = roi_align(x, boxes, bins, sampling_ratio=ratio, impl=impl)
        return roi_unpool(pooled, boxes, 9, mode=mode, impl=impl)

    torch.testing.assert_close(there_and_back(x, full, 9, 1), x)
    smoother = torch.tensor([0.125, 0.75, 0.125])
    smoothed = torch.einsum("ncyxij,i,j->ncyx", x.unfold(2, 3, 1).unfold(3, 3, 1), *[smoother] * 2)
    torch.testing.assert_close(there_and_back(x, full, 9, 2)[..., 1:-1, 1:-1], smoothed)
    part = torch.tensor([[[1.3, 2.2, 7.4, 8.1]]])
    back = there_and_back(torch.full((1, 3, 9, 9), 5.0), part, 4, 2)
    assert back.count_nonzero() > 0
    torch.testing.assert_close(back[back != 0], torch.full((int(back.count_nonzero()),), 5.0))


@pytest.mark.parametrize("name", ["oblong", "oblong_aligned", "channels_last"])
@pytest.mark.parametrize("impl", ALL)
def test_gradient_is_the_adjoint(impl, name):
    op, inputs, _ = make(name)
    rois = inputs["rois"].requires_grad_()
    out = op(impl, rois)
    y, other = torch.randn_like(out), torch.randn_like(rois)
    (transposed,) = torch.autograd.grad(out, rois, y)
    torch.testing.assert_close((op(impl, other) * y).sum(), (other * transposed).sum())


@pytest.mark.parametrize("impl", ALL)
def test_boxes_in_any_form(impl):
    rois, size = torch.randn(4, 3, 2, 2), (5, 6)
    boxes = torch.tensor([[0, 0, 4, 4], [1, 2, 5, 5], [2, 0, 6, 3], [-1, -1, 2, 2.0]])
    wanted = roi_unpool(rois, boxes, size, impl=impl)
    rows = torch.cat((torch.tensor([[0.0], [0], [1], [9]]), boxes), 1)
    for form in (rows, boxes.view(2, 2, 4), [boxes[:1], boxes[1:]], boxes.long()):
        assert torch.equal(roi_unpool(rois, form, size, impl=impl), wanted)


@pytest.mark.parametrize("impl", ALL)
def test_channels_stay_last(impl):
    op, inputs, _ = make("channels_last")
    rois = inputs["rois"].requires_grad_()
    out = op(impl, rois)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, op(impl, rois.contiguous()), rtol=1e-5, atol=1e-6)
    out.sum().backward()
    assert impl == "reference" or rois.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("impl", FUSED)
def test_any_strides(impl):
    op, inputs, _ = make("oblong")
    rois = inputs["rois"].requires_grad_()
    out = op(impl, rois)
    upstream = torch.randn(out.shape)
    (wanted,) = torch.autograd.grad(out, rois, upstream)
    for view in (
        rois.transpose(1, 2).contiguous().transpose(1, 2),
        rois.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack((rois, rois), -1)[..., 0],
        rois[..., :1].expand_as(rois),
    ):
        view = view.detach().requires_grad_()
        out = op(impl, view)
        torch.testing.assert_close(out, op(impl, view.contiguous()), rtol=1e-5, atol=1e-6)
        sparse = torch.stack((upstream, upstream), -1)[..., 0]
        (grad,) = torch.autograd.grad(out, view, sparse)
        torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.* encountered in")
@pytest.mark.parametrize("impl", FUSED)
def test_nothing_to_unpool(impl):
    for shape in ((0, 3, 2, 2), (2, 0, 2, 2)):
        boxes = torch.zeros(shape[0], 4)
        results = gradients(
            lambda rois, boxes=boxes: roi_unpool(rois, boxes, (4, 5), impl=impl),
            {"rois": torch.randn(shape)},
        )
        assert results["out"].shape == (*shape[:2], 4, 5)


@pytest.mark.filterwarnings("ignore:.* encountered in")
@pytest.mark.parametrize("mode", ["official", "aligned"])
@pytest.mark.parametrize("impl", ALL)
def test_boxes_beyond_reason(impl, mode):
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor(
        [[2.0, 2, 2, 4], [4, 4, 1, 1], [9, 9, 12, 12], [nan, 0, 3, 3], [0, 0, inf, 3]]
    )
    out = roi_unpool(torch.ones(5, 2, 3, 3), boxes, 5, mode=mode, impl=impl)
    assert not out[:4].any()
    assert out.isfinite().all()
    far = torch.tensor([[-1e6, -1e6, 1e6, 1e6]])
    centre = roi_unpool(torch.randn(1, 2, 3, 3), far, 5, mode=mode, impl=impl)
    assert centre.isfinite().all()


@pytest.mark.parametrize("name", ["plain", "channels_last"])
@pytest.mark.parametrize("impl", FUSED)
def test_is_deterministic_for_any_number_of_threads(impl, name):
    op, inputs, _ = make(name)
    assert_deterministic(lambda rois: op(impl, rois), inputs)


@pytest.mark.parametrize("name", ["oblong", "channels_last"])
@pytest.mark.parametrize("impl", FUSED)
def test_operators_are_registered_rightly(impl, name):
    _, inputs, (boxes, size, scale, mode) = make(name)
    rois = inputs["rois"].requires_grad_()
    opcheck(
        torch.ops.visattn.roi_unpool.default, (rois, boxes, size, scale, mode == "aligned", impl)
    )


def test_compiles_whole_for_any_size():
    def twice(rois, boxes, x):
        first = roi_unpool(rois, boxes, x.shape[2:], impl="cpu")
        return first * roi_unpool(rois * 2, boxes + 1, x.shape[2:], mode="aligned", impl="cpu")

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    for count, channels, bins, size in ((3, 21, 4, (5, 7)), (5, 6, 3, (9, 4))):
        rois, x = torch.randn(count, channels, bins, bins), torch.randn(1, 1, *size)
        boxes = torch.rand(count, 4) * 3 + torch.tensor([0, 0, 3, 3])
        wanted = gradients(lambda rois, b=boxes, x=x: twice(rois, b, x), {"rois": rois})
        actual = gradients(lambda rois, b=boxes, x=x: compiled(rois, b, x), {"rois": rois})
        for name, value in actual.items():
            torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


def test_exports_plain_torch_unless_told():
    class Model(torch.nn.Module):
        def forward(self, rois, boxes, x):
            return roi_unpool(rois, boxes, x.shape[2:], 0.5)

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    def inputs(batch, count, size):
        boxes = torch.rand(batch, count, 4) * 4 + torch.tensor([0, 0, 4, 4])
        return torch.randn(batch * count, 3, 4, 4), boxes, torch.randn(1, 1, *size)

    auto = torch.export.Dim.AUTO
    shapes = ({0: auto}, {0: auto, 1: auto}, {2: auto, 3: auto})
    plain = torch.export.export(Model(), inputs(2, 3, (6, 9)), dynamic_shapes=shapes)
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), inputs(2, 3, (6, 9)), dynamic_shapes=shapes)
    assert any("visattn" in name for name in operators(fused))
    others = inputs(3, 5, (8, 7))
    torch.testing.assert_close(plain.module()(*others), fused.module()(*others))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_changes_nothing(impl):
    op, inputs, _ = make("oblong_aligned")
    wanted = op(impl, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op(impl, **inputs), wanted)


def test_second_derivatives_need_the_reference():
    op, inputs, _ = make("plain")
    rois = inputs["rois"].requires_grad_()

    def slope(impl):
        out = op(impl, rois).square().sum()
        return torch.autograd.grad(out, rois, create_graph=True)[0]

    assert torch.autograd.grad(slope("reference").sum(), rois)[0].isfinite().all()
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope("cpu").sum(), rois)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_boxes_have_no_gradient(impl):
    rois = torch.randn(1, 2, 3, 3, requires_grad=True)
    boxes = torch.tensor([[1.0, 1, 4, 4]], requires_grad=True)
    out = roi_unpool(rois, boxes, 5, impl=impl)
    assert torch.autograd.grad(out.sum(), (rois, boxes), allow_unused=True)[1] is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rois": torch.randn(3, 5, 5)}, r"rois must be \(R, C, P, Q\)"),
        ({"rois": torch.zeros(1, 3, 5, 5, dtype=torch.long)}, "floating-point"),
        ({"rois": torch.randn(1, 3, 0, 5)}, "at least one bin"),
        ({"boxes": torch.zeros(2, 4)}, "boxes must be as many as rois; got 2 boxes"),
        ({"boxes": torch.zeros(1, 6)}, r"boxes must be \(R, 5\)"),
        ({"size": 0}, "size must be"),
        ({"mode": "exact"}, "mode must be one of official, aligned; got 'exact'"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_bad_input(change, message):
    good = {"rois": torch.randn(1, 3, 5, 5), "boxes": torch.zeros(1, 4), "size": 6}
    with pytest.raises(ValueError, match=message):
        roi_unpool(**{**good, **change})


def test_an_implementation_that_cannot_run_says_why():
    rois = torch.randn(1, 3, 5, 5)
    with pytest.raises(RuntimeError, match="no implementation 'natten'"):
        roi_unpool(rois, torch.zeros(1, 4), 6, impl="natten")
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        roi_unpool(rois.double(), torch.zeros(1, 4), 6, impl="cpu")
