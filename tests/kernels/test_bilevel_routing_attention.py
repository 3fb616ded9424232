"""Bi-level routing attention against loops, against full attention and against its own rules."""

import math

import pytest
import torch
import torch.nn.functional as F
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from torch.library import opcheck

from visattn.kernels import bilevel_routing_attention, route_regions, use_impl

FUSED = ["cpu", "triton"]

GEOMETRIES = [
    # height, width, regions, topk
    (4, 4, 2, 2),
    (6, 10, 2, 3),
    (5, 6, 2, 2),
    (16, 18, 7, 4),
    (5, 5, 7, 4),
    (3, 8, (2, 3), 5),
    (7, 7, 7, 49),
]


# batch, (height, width), heads, dim, dim_v, (rows, columns) of regions, topk, pad_mode, pooling
CASES = {
    "small_regions": (1, (6, 6), 2, 32, 32, (3, 3), 4, "mask", 1),
    "few_chosen": (2, (8, 4), 1, 16, 16, (2, 2), 1, "mask", 1),
    "cropped": (1, (5, 7), 1, 8, 8, (2, 3), 4, "mask", 1),
    "filled_up": (1, (5, 7), 2, 8, 8, (2, 3), 4, "zero", 1),
    "empty_regions": (1, (3, 5), 1, 8, 8, (4, 2), 5, "mask", 1),
    "empty_regions_filled_up": (1, (3, 5), 1, 8, 8, (4, 2), 5, "zero", 1),
    "odd_widths": (1, (4, 6), 1, 24, 40, (2, 2), 3, "mask", 1),
    "one_value": (1, (4, 4), 2, 8, 1, (2, 2), 2, "mask", 1),
    "pooled": (1, (8, 8), 1, 16, 16, (2, 2), 3, "mask", 2),
    "one_region": (1, (12, 13), 1, 8, 8, (1, 1), 1, "mask", 1),
    "many_keys": (1, (16, 12), 1, 8, 16, (4, 4), 16, "zero", 1),
}


def make(name, dtype=torch.float32):
    """An op of ``impl`` and inputs, and inputs for it, routing included."""
    batch, (height, width), heads, dim, dim_v, regions, topk, pad_mode, pooling = CASES[name]
    small = height // pooling, width // pooling
    geometry = {"regions": regions, "topk": topk, "pad_mode": pad_mode}
    inputs = {
        "q": torch.randn(batch, height, width, heads, dim, dtype=dtype),
        "k": torch.randn(batch, *small, heads, dim, dtype=dtype),
        "v": torch.randn(batch, *small, heads, dim_v, dtype=dtype),
    }
    inputs["routing"] = route_regions(inputs["q"].double(), inputs["k"].double(), **geometry)

    def op(impl, q, k, v, routing):
        return bilevel_routing_attention(q, k, v, **geometry, routing=routing, impl=impl)

    return op, inputs


def qkv(height, width, batch=2, heads=2, dim=4, dtype=torch.float64):
    return torch.randn(3, batch, height, width, heads, dim, dtype=dtype).unbind(0)


def cells(size, count, pad_mode):
    """Positions of each region along one side, padding (positions >= size) included."""
    length = math.ceil(size / count) if pad_mode == "mask" else max(size // count, 1)
    number = count if pad_mode == "mask" else max(math.ceil(size / length), count)
    return [range(i * length, (i + 1) * length) for i in range(number)]


def loops(q, k, v, regions, topk, pad_mode, scale):
    """The definition, token by token."""
    batch, height, width, heads, _ = q.shape
    rows, columns = (regions, regions) if isinstance(regions, int) else regions
    grid = [
        [(y, x) for y in ys for x in xs]
        for ys in cells(height, rows, pad_mode)
        for xs in cells(width, columns, pad_mode)
    ]
    real = [[(y, x) for y, x in cell if y < height and x < width] for cell in grid]
    out = torch.zeros_like(v)
    for b in range(batch):
        means = [
            [torch.stack([t[b, y, x].flatten() for y, x in cell]).mean(0) if cell else None
             for cell in real]
            for t in (q, k)
        ]  # fmt: skip
        for mean, cell in zip(means[0], real, strict=True):
            if not cell:
                continue
            affinity = [-math.inf if m is None else float(mean @ m) for m in means[1]]
            chosen = sorted(range(len(grid)), key=lambda i: -affinity[i])[:topk]
            chosen = [i for i in chosen if real[i]]
            keys = [token for i in chosen for token in (real[i] if pad_mode == "mask" else grid[i])]
            for y, x in cell:
                for h in range(heads):
                    inside = [(j, i) if j < height and i < width else None for j, i in keys]
                    zero = q.new_zeros(())
                    logits = torch.stack(
                        [scale * q[b, y, x, h] @ k[b, t[0], t[1], h] if t else zero for t in inside]
                    )
                    weights = logits.softmax(0)
                    for weight, t in zip(weights, inside, strict=True):
                        if t is not None:
                            out[b, y, x, h] += weight * v[b, t[0], t[1], h]
    return out


@pytest.mark.parametrize("pad_mode", ["mask", "zero"])
@pytest.mark.parametrize(("height", "width", "regions", "topk"), GEOMETRIES)
def test_equals_the_loops(height, width, regions, topk, pad_mode):
    q, k, v = qkv(height, width)
    expected = loops(q, k, v, regions, topk, pad_mode, scale=0.3)
    actual = bilevel_routing_attention(q, k, v, regions, topk, scale=0.3, pad_mode=pad_mode)
    torch.testing.assert_close(actual, expected)


def test_all_regions_is_full_attention_scaled_by_the_full_width():
    q, k, v = qkv(6, 10)
    full = F.scaled_dot_product_attention(
        *(t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)), scale=8**-0.5
    )
    expected = full.transpose(1, 2).unflatten(1, (6, 10))
    torch.testing.assert_close(bilevel_routing_attention(q, k, v, 2, 4), expected)


def test_topk_is_clamped_to_the_number_of_regions():
    q, k, v = qkv(4, 4)
    expected = bilevel_routing_attention(q, k, v, 2, 4)
    torch.testing.assert_close(bilevel_routing_attention(q, k, v, 2, 99), expected)


def test_padding_is_not_seen_in_mask_mode():
    q, k, v = qkv(5, 5)
    whole = bilevel_routing_attention(q, k, v, 2, 4)
    expected = F.scaled_dot_product_attention(
        *(t.flatten(1, 2).transpose(1, 2) for t in (q, k, v)), scale=8**-0.5
    )
    torch.testing.assert_close(whole, expected.transpose(1, 2).unflatten(1, (5, 5)))


def test_modes_agree_where_regions_divide_the_map():
    q, k, v = qkv(6, 9)
    masked, zero = (
        bilevel_routing_attention(q, k, v, 3, 2, pad_mode=mode) for mode in ("mask", "zero")
    )
    torch.testing.assert_close(masked, zero)


def test_given_routing_is_used():
    q, k, v = qkv(4, 4)
    itself = torch.arange(4)[None, :, None].expand(2, 4, 1)
    actual = bilevel_routing_attention(q, k, v, 2, 1, routing=itself)
    corner = bilevel_routing_attention(*(t[:, :2, :2] for t in (q, k, v)), 1, 1)
    torch.testing.assert_close(actual[:, :2, :2], corner)


def test_pooled_keys_keep_the_grid():
    q, k, v = qkv(8, 8)
    pooled_k, pooled_v = (
        F.avg_pool2d(t.flatten(3).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).unflatten(3, (2, 4))
        for t in (k, v)
    )
    out = bilevel_routing_attention(q, pooled_k, pooled_v, 2, 4)
    expected = F.scaled_dot_product_attention(
        *(t.flatten(1, 2).transpose(1, 2) for t in (q, pooled_k, pooled_v)), scale=8**-0.5
    )
    torch.testing.assert_close(out, expected.transpose(1, 2).unflatten(1, (8, 8)))


def test_routing_carries_no_gradient():
    q, k, v = (t.requires_grad_() for t in qkv(6, 6, batch=1))
    frozen = route_regions(q, k, 3, 2)
    free = torch.autograd.grad(bilevel_routing_attention(q, k, v, 3, 2).square().sum(), (q, k, v))
    given = torch.autograd.grad(
        bilevel_routing_attention(q, k, v, 3, 2, routing=frozen).square().sum(), (q, k, v)
    )
    torch.testing.assert_close(free, given)


@pytest.mark.parametrize("pad_mode", ["mask", "zero"])
def test_first_and_second_derivatives(pad_mode):
    q, k, v = (t.requires_grad_() for t in qkv(3, 5, batch=1, heads=1, dim=2))
    routing = route_regions(q, k, 2, 2, pad_mode=pad_mode)

    def op(q, k, v):
        return bilevel_routing_attention(q, k, v, 2, 2, pad_mode=pad_mode, routing=routing)

    assert torch.autograd.gradcheck(op, (q, k, v))
    assert torch.autograd.gradgradcheck(op, (q, k, v))


def test_routing_is_the_same_under_autocast():
    q, k, _ = qkv(14, 14, dtype=torch.float32)
    expected = route_regions(q, k, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(route_regions(q, k, 7, 8), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", FUSED)
def test_is_as_exact_as_the_reference(impl, name, dtype):
    op, inputs = make(name, dtype)
    assert_as_exact_as_reference(op, inputs, impl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("impl", FUSED)
def test_routes_as_the_reference(impl, name, dtype):
    _, inputs = make(name, dtype)
    geometry = dict(zip(("regions", "topk", "pad_mode"), CASES[name][5:8], strict=True))
    actual = route_regions(inputs["q"], inputs["k"], **geometry, impl=impl)
    expected = route_regions(inputs["q"], inputs["k"], **geometry, impl="reference")
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("impl", FUSED)
def test_ties_are_broken_as_in_the_reference(impl):
    """Images of few colours have regions alike to the bit."""
    colours = torch.randn(2, 12)
    q, k = (colours[torch.randint(0, 2, (1, 4, 4))].repeat_interleave(3, 1) for _ in range(2))
    q, k = (x.repeat_interleave(3, 2).unflatten(-1, (2, 6)) for x in (q, k))
    actual = route_regions(q, k, 4, 7, impl=impl)
    assert torch.equal(actual, route_regions(q, k, 4, 7, impl="reference"))


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_strides_of_the_inputs_do_not_matter(impl):
    op, inputs = make("cropped")
    expected = op("reference", **inputs)
    turned = {
        name: x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        for name, x in inputs.items()
    }
    torch.testing.assert_close(op(impl, **turned), expected)
    packed = torch.stack([inputs[name] for name in "qkv"], 3)
    parts = dict(zip("qkv", packed.unbind(3), strict=True))
    torch.testing.assert_close(op(impl, **parts, routing=inputs["routing"].int()), expected)


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_an_empty_batch_gives_an_empty_result(impl):
    op, inputs = make("cropped")
    results = gradients(
        lambda **leaves: op(impl, **leaves), {name: x[:0] for name, x in inputs.items()}
    )
    assert results["out"].shape == results["q"].shape == (0, 5, 7, 1, 8)
    assert route_regions(inputs["q"][:0], inputs["k"][:0], 2, 2, impl=impl).shape == (0, 4, 2)


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_a_region_chosen_twice_counts_twice(impl):
    op, inputs = make("small_regions")
    inputs["routing"] = torch.tensor([4, 0, 4]).expand(1, 9, 3)
    logits = torch.einsum("byxhd,bjihd->byxhji", inputs["q"], inputs["k"]) * 64**-0.5
    twice = torch.zeros(6, 6)
    twice[2:4, 2:4], twice[:2, :2] = 2, 1
    weights = (logits.flatten(4) + twice.flatten().log()).softmax(-1).unflatten(-1, (6, 6))
    expected = torch.einsum("byxhji,bjihd->byxhd", weights, inputs["v"])
    torch.testing.assert_close(op(impl, **inputs), expected)


@pytest.mark.parametrize("name", ["small_regions", "filled_up", "odd_widths", "one_region"])
@pytest.mark.parametrize("impl", FUSED)
def test_is_deterministic_for_any_number_of_threads(impl, name):
    """Also where there are more threads than heads, which keys are summed differently for."""
    op, inputs = make(name)
    assert_deterministic(
        lambda **leaves: op(impl, **leaves), inputs, threads=(1, 2, 5) if impl == "cpu" else (1, 2)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_threads_than_heads(dtype):
    op, inputs = make("pooled", dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert_as_exact_as_reference(op, inputs, "cpu")
    finally:
        torch.set_num_threads(threads)


def test_large_offsets():
    """Rows further apart than 32 bits count, in memory that is mapped but hardly touched."""
    row = 2**29 + 16
    storage = torch.empty(5 * row + 64)
    x = storage.as_strided((1, 6, 2, 1, 32), (0, row, 32, 32, 1))
    small = torch.randn(1, 6, 2, 1, 32)
    x.copy_(small)
    torch.testing.assert_close(
        bilevel_routing_attention(x, x, x, (3, 1), 2, impl="cpu"),
        bilevel_routing_attention(small, small, small, (3, 1), 2, impl="reference"),
    )


@pytest.mark.parametrize("impl", FUSED)
def test_operators_are_registered_rightly(impl):
    _, inputs = make("cropped")
    q, k, v = (inputs[name].requires_grad_() for name in "qkv")
    opcheck(
        torch.ops.visattn.bilevel_routing_attention.default,
        (q, k, v, inputs["routing"], (2, 3), 0.3, "mask", impl),
    )
    opcheck(
        torch.ops.visattn.route_regions.default,
        (q.detach(), k.detach(), (2, 3), 4, 0.3, "mask", impl),
    )


@pytest.mark.parametrize("pad_mode", ["mask", "zero"])
def test_compiles_whole_for_any_size(pad_mode):
    def twice(qkv):
        for _ in range(2):
            x = bilevel_routing_attention(*qkv.unbind(3), 3, 4, pad_mode=pad_mode, impl="cpu")
            qkv = torch.stack([x, x + 1, x], 3)
        return x

    inputs = {"qkv": torch.randn(2, 7, 8, 3, 2, 16)}
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    wanted = gradients(twice, inputs)
    for name, value in gradients(compiled, inputs).items():
        torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")
    larger = torch.randn(1, 9, 13, 3, 2, 16)
    torch.testing.assert_close(compiled(larger), twice(larger))


def test_exports_plain_torch_unless_told():
    class Model(torch.nn.Module):
        def forward(self, qkv):
            return bilevel_routing_attention(*qkv.unbind(3), 2, 2)

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    qkv = torch.randn(1, 5, 6, 3, 2, 8)
    plain = torch.export.export(Model(), (qkv,))
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), (qkv,))
    assert any("visattn" in name for name in operators(fused))
    torch.testing.assert_close(plain.module()(qkv), fused.module()(qkv))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_computes_in_low_precision(impl):
    op, inputs = make("small_regions")
    with torch.autocast("cpu", torch.bfloat16):
        out = op(impl, **inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), op(impl, **inputs), atol=0.05, rtol=0.05)


def test_second_derivatives_need_the_reference():
    op, inputs = make("small_regions")
    q = inputs.pop("q").requires_grad_()

    def slope(impl):
        out = op(impl, q=q, **inputs)
        return torch.autograd.grad(out.square().sum(), q, create_graph=True)[0]

    assert torch.autograd.grad(slope("reference").sum(), q)[0].isfinite().all()
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope("cpu").sum(), q)


def test_an_implementation_that_cannot_run_says_why():
    q = torch.randn(1, 4, 4, 1, 8)
    with pytest.raises(RuntimeError, match="no implementation 'natten'"):
        bilevel_routing_attention(q, q, q, 2, 1, impl="natten")
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        bilevel_routing_attention(*[q.double()] * 3, 2, 1, impl="cpu")


def test_a_region_that_there_is_not_is_named():
    q = torch.randn(1, 4, 4, 1, 8)
    with pytest.raises(ValueError, match="regions from 0 to 3; got from 0 to 4"):
        bilevel_routing_attention(q, q, q, 2, 2, routing=torch.tensor([[[0, 4]] * 4]), impl="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk": 0}, "topk must be at least 1"),
        ({"regions": 0}, "regions must be at least 1"),
        ({"pad_mode": "wrap"}, "pad_mode must be one of"),
        ({"k": torch.zeros(2, 4, 4, 3, 4)}, "agree in B, heads and dim"),
        ({"v": torch.zeros(2, 4, 5, 2, 4)}, "v must be"),
        ({"k": torch.zeros(2, 3, 3, 2, 4), "v": torch.zeros(2, 3, 3, 2, 4)}, "pooled keys"),
        ({"routing": torch.zeros(2, 3, 1, dtype=torch.int64)}, r"with \(B, P\) = \(2, 4\)"),
        ({"routing": torch.zeros(2, 4, 1)}, "routing must be region indices"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_impossible_arguments_are_named(change, message):
    q, k, v = qkv(4, 4, dtype=torch.float32)
    arguments = {"q": q, "k": k, "v": v, "regions": 2, "topk": 2} | change
    with pytest.raises(ValueError, match=message):
        bilevel_routing_attention(**arguments)
