"""Window attention against its definition by loops, and all implementations against it."""

import pytest
import torch
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from timm.models.swin_transformer import SwinTransformerBlock
from torch.library import opcheck

from visattn.kernels import use_impl, window_attention

FUSED = ["cpu", "triton"]

# batch, height, width, heads, dim, window, shift, bias
GEOMETRIES = {
    "plain": (2, 8, 8, 2, 16, (4, 4), (0, 0), False),
    "swin": (2, 14, 14, 3, 32, (7, 7), (3, 3), True),
    "undivided": (1, 9, 11, 2, 8, (4, 4), (2, 2), True),
    "oblong": (1, 10, 7, 1, 24, (5, 3), (4, 1), True),
    "one_window": (2, 5, 6, 2, 16, (5, 6), (0, 0), True),
    "larger_than_map": (1, 3, 4, 1, 8, (7, 7), (3, 3), True),
    "many_tokens": (1, 9, 18, 1, 8, (9, 9), (4, 0), True),
    "wide_heads": (1, 4, 4, 1, 80, (4, 4), (2, 2), False),
    "single_tokens": (1, 3, 2, 2, 8, (1, 1), (0, 0), True),
}


def make(name, dtype=torch.float32):
    batch, height, width, heads, dim, window, shift, biased = GEOMETRIES[name]
    area = window[0] * window[1]
    inputs = {
        "qkv": torch.randn(batch, height, width, 3, heads, dim, dtype=dtype),
        "bias": torch.randn(heads, area, area) if biased else None,
    }

    def op(impl, qkv, bias):
        return window_attention(*qkv.unbind(3), window, shift, bias, impl=impl)

    return op, inputs


def by_loops(q, k, v, window, shift, bias, scale):
    """Every query, its window found by rolling its position, one key at a time."""
    batch, height, width, heads, dim = q.shape
    out = torch.empty_like(q)
    rolled = [-(-size // side) * side for size, side in zip((height, width), window, strict=True)]

    def home(y, x):
        """Window and place in it, and whether the position was wrapped along either axis."""
        at = [(p - s) % r for p, s, r in zip((y, x), shift, rolled, strict=True)]
        tile = tuple(p // side for p, side in zip(at, window, strict=True))
        place = at[0] % window[0] * window[1] + at[1] % window[1]
        return tile, place, (y < shift[0], x < shift[1])

    positions = [(y, x) for y in range(height) for x in range(width)]
    for b in range(batch):
        for h in range(heads):
            for y, x in positions:
                tile, place, wrapped = home(y, x)
                logits, values = [], []
                for yk, xk in positions:
                    tile_k, place_k, wrapped_k = home(yk, xk)
                    if tile_k == tile and wrapped_k == wrapped:
                        logit = (q[b, y, x, h] @ k[b, yk, xk, h]) * scale
                        logits.append(logit + (0 if bias is None else bias[h, place, place_k]))
                        values.append(v[b, yk, xk, h])
                weights = torch.stack(logits).softmax(0)
                out[b, y, x, h] = weights @ torch.stack(values)
    return out


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_is_the_definition(name):
    op, inputs = make(name, torch.float64)
    batch, height, width, heads, dim, window, shift, _ = GEOMETRIES[name]
    qkv, bias = inputs["qkv"][:1], inputs["bias"]
    bias = None if bias is None else bias.double()
    wanted = by_loops(*qkv.unbind(3), window, shift, bias, dim**-0.5)
    torch.testing.assert_close(op("reference", qkv, bias), wanted)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_is_exported_is_the_definition(name, monkeypatch):
    op, inputs = make(name)
    wanted = op("reference", **inputs)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(op("reference", **inputs), wanted)


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize(
    ("size", "shifted"), [((14, 14), True), ((5, 30), False), ((8, 9), True), ((7, 20), False)]
)
def test_small_maps_may_be_left_unshifted(size, shifted, exporting, monkeypatch):
    q, k, v = torch.randn(3, 2, *size, 2, 4)
    bias = torch.randn(2, 49, 49)
    wanted = window_attention(q, k, v, 7, 3 if shifted else 0, bias)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    actual = window_attention(q, k, v, 7, 3, bias, shift_small_maps=False)
    torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("shift", [0, 3])
def test_equals_a_swin_block(shift):
    """timm's own shift, partition, mask and merge around its own attention."""
    block = SwinTransformerBlock(32, (14, 14), num_heads=2, window_size=7, shift_size=shift)
    x = torch.randn(2, 14, 14, 32)
    wanted = block._attn(x)
    attn = block.attn
    qkv = attn.qkv(x).unflatten(-1, (3, 2, 16))
    out = window_attention(*qkv.unbind(3), 7, shift, attn._get_rel_pos_bias()[0])
    torch.testing.assert_close(attn.proj(out.flatten(3)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("impl", FUSED)
def test_is_as_exact_as_the_reference(impl, name, dtype):
    op, inputs = make(name, dtype)
    assert_as_exact_as_reference(op, inputs, impl)


@pytest.mark.parametrize("impl", FUSED)
def test_any_strides(impl):
    op, inputs = make("undivided")
    qkv = inputs["qkv"]
    for turned in (qkv.permute(5, 2, 1, 3, 4, 0).contiguous().permute(5, 2, 1, 3, 4, 0), qkv[::1]):
        torch.testing.assert_close(
            op(impl, turned, inputs["bias"]), op("reference", qkv, inputs["bias"])
        )
    spread = inputs["bias"].transpose(-2, -1).contiguous().transpose(-2, -1)
    torch.testing.assert_close(op(impl, qkv, spread), op(impl, qkv, inputs["bias"]))


@pytest.mark.parametrize("impl", FUSED)
def test_empty_batch(impl):
    op, inputs = make("swin")
    inputs["qkv"] = inputs["qkv"][:0]
    results = gradients(lambda **leaves: op(impl, **leaves), inputs)
    assert results["out"].shape == (0, 14, 14, 3, 32)
    assert not results["bias"].any()


@pytest.mark.parametrize("impl", FUSED)
def test_is_deterministic_for_any_number_of_threads(impl):
    op, inputs = make("swin")
    assert_deterministic(lambda **leaves: op(impl, **leaves), inputs)


def test_large_offsets():
    """Rows further apart than 32 bits count, in memory that is mapped but hardly touched."""
    row = 2**29 + 16
    storage = torch.empty(5 * row + 64)
    x = storage.as_strided((1, 6, 2, 1, 32), (0, row, 32, 32, 1))
    small = torch.randn(1, 6, 2, 1, 32)
    x.copy_(small)
    torch.testing.assert_close(
        window_attention(x, x, x, (3, 2), impl="cpu"),
        window_attention(small, small, small, (3, 2), impl="reference"),
    )


@pytest.mark.parametrize("impl", FUSED)
def test_operators_are_registered_rightly(impl):
    _, inputs = make("undivided")
    q, k, v = (x.detach().requires_grad_() for x in inputs["qkv"].unbind(3))
    opcheck(
        torch.ops.visattn.window_attention.default,
        (q, k, v, inputs["bias"].requires_grad_(), (4, 4), (2, 2), 0.3, impl),
    )


def test_compiles_whole_for_any_size():
    op, inputs = make("swin")

    def twice(qkv, bias):
        x = op("cpu", qkv, bias)
        return op("cpu", torch.stack([x, x, x], 3), bias)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    wanted = gradients(twice, inputs)
    for name, value in gradients(compiled, inputs).items():
        torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")
    larger = {**inputs, "qkv": torch.randn(1, 21, 15, 3, 3, 32)}
    torch.testing.assert_close(compiled(**larger), twice(**larger))


def test_exports_plain_torch_unless_told():
    op, inputs = make("swin")

    class Model(torch.nn.Module):
        def forward(self, qkv):
            return op(None, qkv, None)

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    plain = torch.export.export(Model(), (inputs["qkv"],))
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), (inputs["qkv"],))
    assert any("visattn" in name for name in operators(fused))
    torch.testing.assert_close(plain.module()(inputs["qkv"]), fused.module()(inputs["qkv"]))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_computes_in_low_precision(impl):
    op, inputs = make("swin")
    with torch.autocast("cpu", torch.bfloat16):
        out = op(impl, **inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), op(impl, **inputs), atol=0.05, rtol=0.05)


def test_second_derivatives_need_the_reference():
    op, inputs = make("plain")
    qkv = inputs["qkv"].requires_grad_()

    def slope(impl):
        return torch.autograd.grad(op(impl, qkv, None).square().sum(), qkv, create_graph=True)[0]

    assert torch.autograd.grad(slope("reference").sum(), qkv)[0].isfinite().all()
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope("cpu").sum(), qkv)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": torch.randn(1, 8, 8, 1, 8)}, "all the same"),
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"shift": 4}, "below window_size"),
        ({"bias": torch.randn(2, 9, 9)}, r"bias must be .*\(2, 16, 16\)"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_bad_input(change, message):
    q = torch.randn(1, 8, 8, 2, 8)
    with pytest.raises(ValueError, match=message):
        window_attention(**{"q": q, "k": q, "v": q, "window_size": 4, **change})


def test_an_implementation_that_cannot_run_says_why():
    q = torch.randn(1, 4, 4, 1, 8)
    with pytest.raises(RuntimeError, match="no implementation 'natten'"):
        window_attention(q, q, q, 2, impl="natten")
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        window_attention(*[q.double()] * 3, 2, impl="cpu")
