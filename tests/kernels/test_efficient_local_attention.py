"""Efficient local attention against loops, its own rules and timm, and all implementations."""

import itertools

import pytest
import torch
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients, poisoned_memory
from timm.layers.coord_attn import EfficientLocalAttn
from torch import nn
from torch.library import opcheck

from visattn.kernels import efficient_local_attention, use_impl

FUSED = ["cpu", "triton"]
LAYOUTS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}

# batch, channels, height, width, channels of a group, taps, norm groups, sets of parameters
GEOMETRIES = {
    "b": (2, 32, 6, 9, 1, 7, 16, 1),
    "l": (2, 32, 14, 11, 8, 7, 4, 1),
    "own_parameters": (3, 16, 12, 5, 8, 5, 2, 2),
    "dense": (1, 24, 7, 13, 24, 5, 3, 1),
    "odd_groups": (1, 18, 5, 21, 3, 3, 2, 2),
    "groups_that_straddle": (2, 96, 4, 4, 2, 5, 16, 1),
    "longer_kernel_than_map": (1, 32, 2, 3, 16, 19, 1, 1),
    "one_column": (2, 8, 40, 1, 4, 3, 2, 1),
    "one_position": (2, 16, 1, 1, 1, 3, 2, 1),
    "one_tap": (1, 7, 9, 17, 1, 1, 7, 1),
    "wide": (1, 4, 3, 75, 2, 3, 1, 1),
    "narrow": (1, 8, 40, 3, 1, 3, 2, 1),
    "groups_of_registers": (2, 48, 9, 12, 16, 7, 3, 1),
    "part_of_a_block": (1, 24, 15, 8, 8, 5, 3, 1),
}
# Interpreted programs are slow: little of everything, with tiles that end within, and several.
TINY = {
    "tiny": (2, 8, 6, 5, 2, 3, 2, 1),
    "tiny_own_parameters": (1, 8, 5, 6, 4, 5, 4, 2),
    "tiny_odd_groups": (1, 6, 3, 9, 3, 3, 2, 2),
    "tiny_longer_kernel_than_map": (1, 4, 2, 3, 2, 9, 1, 1),
    "tiny_one_position": (2, 4, 1, 1, 1, 3, 2, 1),
    "several_tiles_of_channels": (1, 18, 2, 4, 1, 3, 1, 1),
    "several_tiles_of_the_map": (1, 2, 36, 133, 2, 3, 1, 1),
}
LARGE = {
    "large_planes": (1, 32, 70, 90, 1, 7, 2, 1),
    "many_images": (19, 64, 8, 8, 8, 5, 16, 1),
    "many_channels": (2, 512, 7, 7, 8, 7, 16, 1),
    "many_rows": (1, 20, 129, 33, 5, 5, 2, 1),
}


def make(geometry, layout="planes", dtype=torch.float32):
    batch, channels, height, width, group, taps, norm_groups, sets = geometry
    lead = (2,) if sets == 2 else ()
    x = torch.randn(batch, channels, height, width, dtype=dtype)
    inputs = {
        "x": x.contiguous(memory_format=LAYOUTS[layout]),
        "conv_weight": torch.randn(*lead, channels, group, taps, dtype=dtype) / group**0.5,
        "norm_weight": torch.randn(*lead, channels, dtype=dtype),
        "norm_bias": torch.randn(*lead, channels, dtype=dtype),
    }

    def op(impl, **tensors):
        return efficient_local_attention(**tensors, norm_groups=norm_groups, impl=impl)

    return op, inputs


def geometry(impl, name):
    return TINY["tiny"] if impl == "triton" else GEOMETRIES[name]


def by_loops(x, conv_weight, norm_weight, norm_bias, norm_groups, eps=1e-5):
    """Strip by strip, tap by tap, group by group."""
    channels = x.shape[1]
    gates = []
    for s, strip in enumerate((x.mean(3), x.mean(2))):
        conv, weight, bias = (
            p[s] if conv_weight.ndim == 4 else p for p in (conv_weight, norm_weight, norm_bias)
        )
        group, taps = conv.shape[1:]
        length = strip.shape[2]
        out = torch.zeros_like(strip)
        for c in range(channels):
            first = c // group * group
            for i in range(length):
                for t in range(taps):
                    at = i + t - taps // 2
                    if 0 <= at < length:
                        out[:, c, i] += strip[:, first : first + group, at] @ conv[c, :, t]
        for part in out.split(channels // norm_groups, 1):
            mean = part.mean((1, 2), keepdim=True)
            variance = (part - mean).square().mean((1, 2), keepdim=True)
            part.copy_((part - mean) / (variance + eps).sqrt())
        gates.append((out * weight[:, None] + bias[:, None]).sigmoid())
    return x * gates[0][..., None] * gates[1][:, :, None]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_is_the_definition(name):
    op, inputs = make(GEOMETRIES[name], dtype=torch.float64)
    wanted = by_loops(**inputs, norm_groups=GEOMETRIES[name][6])
    torch.testing.assert_close(op("reference", **inputs), wanted)


def test_is_timms_layer_without_its_activation():
    """timm has weights of their own for either direction, and an activation before the gate."""
    layer = EfficientLocalAttn(
        32, kernel_size=7, act_layer=nn.Identity, norm_layer=lambda c, **_: nn.GroupNorm(16, c)
    )
    norms = layer.norm_h, layer.norm_w
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 32, 6, 9)
    out = efficient_local_attention(
        x,
        torch.stack([layer.conv_h.weight.squeeze(3), layer.conv_w.weight.squeeze(2)]),
        torch.stack([norm.weight for norm in norms]),
        torch.stack([norm.bias for norm in norms]),
        16,
    )
    torch.testing.assert_close(out, layer(x))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_extreme_parameters(impl):
    """Gates of a half without a convolution, gates that are open, and gates that are shut."""
    op, inputs = make(geometry(impl, "b"))
    x, ones = inputs["x"], torch.ones_like(inputs["norm_bias"])
    zeros, still = ones * 0, {"x": x, "conv_weight": inputs["conv_weight"] * 0}
    halves = op(impl, **still, norm_weight=ones, norm_bias=zeros)
    torch.testing.assert_close(halves, x / 4, rtol=0, atol=0)
    opened = op(impl, **still, norm_weight=zeros, norm_bias=ones * 200)
    torch.testing.assert_close(opened, x, rtol=0, atol=0)
    assert op(impl, **still, norm_weight=zeros, norm_bias=ones * -200).abs().max() < 1e-30


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_keeps_transposition_flips_and_items(impl):
    op, inputs = make(geometry(impl, "l"))
    x, out = inputs["x"], op(impl, **inputs)
    assert (out.abs() <= x.abs()).all() and (out * x >= 0).all()
    turned = op(impl, **{**inputs, "x": x.mT.contiguous()})
    torch.testing.assert_close(turned.mT, out)
    kernel = inputs["conv_weight"].flip(2)
    flipped = op(impl, **{**inputs, "x": x.flip(2, 3), "conv_weight": kernel})
    torch.testing.assert_close(flipped.flip(2, 3), out)
    torch.testing.assert_close(op(impl, **{**inputs, "x": x[:1]}), out[:1])


@pytest.mark.parametrize("impl", FUSED)
def test_not_a_number_stays_in_its_group(impl):
    op, inputs = make(geometry(impl, "b"))
    clean = op(impl, **inputs)
    inputs["x"][0, 5, 2, 3] = float("nan")
    out = op(impl, **inputs)
    first, end = (4, 8) if impl == "triton" else (4, 6)
    assert out[0, first:end].isnan().all()
    assert torch.equal(out[0, :first], clean[0, :first])
    assert torch.equal(out[0, end:], clean[0, end:])
    assert torch.equal(out[1], clean[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [*GEOMETRIES, *LARGE])
def test_cpu_is_as_exact_as_the_reference(name, layout, dtype):
    op, inputs = make({**GEOMETRIES, **LARGE}[name], layout, dtype)
    assert_as_exact_as_reference(op, inputs, "cpu")


@pytest.mark.parametrize(
    "name, layout, dtype",
    [
        *((name, "planes", torch.float32) for name in TINY),
        ("several_tiles_of_the_map", "channels_last", torch.float32),
        ("tiny_own_parameters", "channels_last", torch.float16),
        ("tiny", "planes", torch.bfloat16),
    ],
    ids=str,
)
def test_triton_is_as_exact_as_the_reference(name, layout, dtype):
    op, inputs = make(TINY[name], layout, dtype)
    assert_as_exact_as_reference(op, inputs, "triton")


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name, layout, dtype",
    [
        *itertools.product(GEOMETRIES, LAYOUTS, [torch.float32]),
        ("odd_groups", "planes", torch.bfloat16),
        ("groups_that_straddle", "channels_last", torch.float16),
    ],
    ids=str,
)
def test_triton_is_as_exact_as_the_reference_on_larger_maps(name, layout, dtype):
    op, inputs = make(GEOMETRIES[name], layout, dtype)
    assert_as_exact_as_reference(op, inputs, "triton")


@pytest.mark.parametrize("width", [273, 272])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_larger_than_the_cache(layout, width):
    """They are written past it, but for the ends of planes that do not fill its lines."""
    op, inputs = make((2, 16, 271, width, 1, 5, 2, 1), layout)
    wanted = gradients(lambda **leaves: op("reference", **leaves), inputs)
    with poisoned_memory():
        fused = gradients(lambda **leaves: op("cpu", **leaves), inputs)
    for key, value in fused.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("impl", FUSED)
def test_any_strides_and_memory_formats(impl):
    op, inputs = make(geometry(impl, "l"))
    x, wanted = inputs["x"], op("reference", **inputs)
    batch, channels, height, width = x.shape
    wide = torch.randn(batch, 8 + channels, height, width)
    wide[:, 8:] = x
    last = wide.contiguous(memory_format=torch.channels_last)
    strided = torch.randn(batch, channels, height, 2 * width)
    strided[..., ::2] = x
    views = [wide[:, 8:], last[:, 8:], strided[..., ::2], x.mT.contiguous().mT]
    for view in views:
        leaf = view.detach().requires_grad_()
        out = op(impl, **{**inputs, "x": leaf})
        torch.testing.assert_close(out, wanted)
        assert out.stride() == torch.empty_like(view).stride()
        # A gradient of another layout than x, and one without memory of its own.
        turned = torch.randn(batch, height, width, channels).permute(0, 3, 1, 2)
        for cotangent in (turned, torch.ones(()).expand_as(x)):
            (grad,) = torch.autograd.grad(out, leaf, cotangent, retain_graph=True)
            plain = x.detach().requires_grad_()
            expected = torch.autograd.grad(
                op("reference", **{**inputs, "x": plain}), plain, cotangent
            )
            torch.testing.assert_close(grad, expected[0])
            assert grad.stride() == out.stride()


@pytest.mark.parametrize("impl", FUSED)
def test_empty_batch(impl):
    op, inputs = make((0, *GEOMETRIES["l"][1:]))
    results = gradients(lambda **leaves: op(impl, **leaves), inputs)
    assert results["out"].shape == (0, 32, 14, 11)
    assert not results["conv_weight"].any() and not results["norm_bias"].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("impl", FUSED)
def test_is_deterministic_for_any_number_of_threads(impl, layout):
    op, inputs = make((3, *geometry(impl, "l")[1:]), layout)
    assert_deterministic(lambda **leaves: op(impl, **leaves), inputs)


@pytest.mark.parametrize("impl", FUSED)
def test_large_offsets(impl):
    """Images further apart than 32 bits count, in memory that is mapped but hardly touched."""
    image = 2**30 + 64
    storage = torch.empty(3 * image)
    op, inputs = make((3, *geometry(impl, "b")[1:]))
    small = inputs["x"]
    last = small.contiguous(memory_format=torch.channels_last)
    for strides in (small.stride(), last.stride()):
        x = storage.as_strided(small.shape, (image, *strides[1:]))
        x.copy_(small)
        torch.testing.assert_close(op(impl, **{**inputs, "x": x}), op("reference", **inputs))


@pytest.mark.parametrize("impl", FUSED)
def test_operators_are_registered_rightly(impl):
    for layout in LAYOUTS:
        _, inputs = make(TINY["tiny_own_parameters"], layout)
        tensors = [x.requires_grad_() for x in inputs.values()]
        opcheck(
            torch.ops.visattn.efficient_local_attention.default, (*tensors, 4, 1e-5, True, impl)
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_whole_for_any_size(layout):
    op, inputs = make(GEOMETRIES["b"], layout)

    def twice(x, **parameters):
        return op("cpu", x=op("cpu", x=x, **parameters), **parameters)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    wanted = gradients(twice, inputs)
    for name, value in gradients(compiled, inputs).items():
        torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")
    larger = torch.randn(1, 32, 21, 15).contiguous(memory_format=LAYOUTS[layout])
    inputs = {**inputs, "x": larger}
    with torch.no_grad():
        torch.testing.assert_close(compiled(**inputs), twice(**inputs))


def test_exports_plain_torch_unless_told():
    op, inputs = make(GEOMETRIES["b"])
    x = inputs.pop("x")

    class Model(nn.Module):
        def forward(self, x):
            return op(None, x=x, **inputs)

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    sizes = {"x": {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}}
    plain = torch.export.export(Model(), (x,), dynamic_shapes=sizes)
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), (x,), dynamic_shapes=sizes)
    assert any("visattn" in name for name in operators(fused))
    other = torch.randn(2, 32, 5, 12)
    torch.testing.assert_close(plain.module()(other), fused.module()(other))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_changes_nothing(impl):
    op, inputs = make(GEOMETRIES["l"])
    for dtype in (torch.float32, torch.bfloat16):
        mixed = {**inputs, "x": inputs["x"].to(dtype)}
        wanted = op(impl, **mixed)
        with torch.autocast("cpu", torch.bfloat16):
            out = op(impl, **mixed)
        assert out.dtype == dtype
        assert torch.equal(out, wanted)


def test_second_derivatives_need_the_reference():
    op, inputs = make(GEOMETRIES["b"])
    x = inputs.pop("x").requires_grad_()

    def slope(impl):
        out = op(impl, x=x, **inputs).square().sum()
        return torch.autograd.grad(out, x, create_graph=True)[0]

    assert torch.autograd.grad(slope("reference").sum(), x)[0].isfinite().all()
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope("cpu").sum(), x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.ones(16, 3, 3)}, r"x must be \(B, C, H, W\)"),
        ({"conv_weight": torch.ones(8, 1, 5)}, r"conv_weight must be .* for 16 channels"),
        ({"conv_weight": torch.ones(3, 16, 1, 5)}, r"conv_weight must be .*got \(3, 16, 1, 5\)"),
        ({"conv_weight": torch.ones(16, 3, 5)}, "conv_weight's 3 channels a group"),
        ({"conv_weight": torch.ones(16, 1, 4)}, "kernel size must be odd; got 4"),
        ({"conv_weight": torch.ones(2, 16, 1, 5)}, r"norm_weight must be \(2, 16\)"),
        ({"norm_bias": torch.ones(8)}, r"norm_bias must be \(16,\).*got \(8,\)"),
        ({"norm_groups": 7}, "norm_groups must divide the 16 channels; got 7"),
        ({"norm_groups": 0}, "norm_groups must divide"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "x": torch.ones(1, 16, 3, 3),
        "conv_weight": torch.ones(16, 1, 5),
        "norm_weight": torch.ones(16),
        "norm_bias": torch.ones(16),
        "norm_groups": 4,
    }
    with pytest.raises(ValueError, match=message):
        efficient_local_attention(**{**arguments, **change})


def test_an_implementation_that_cannot_run_says_why():
    op, inputs = make(GEOMETRIES["b"])
    with pytest.raises(RuntimeError, match="no implementation 'natten'"):
        op("natten", **inputs)
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        op("cpu", **{**inputs, "x": inputs["x"].double()})
