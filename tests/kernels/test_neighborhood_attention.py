"""Neighborhood attention against its definition by loops, NATTEN, recorded numbers, and itself."""

import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from torch.library import opcheck

from visattn.kernels import _threads, neighborhood_attention, use_impl
from visattn.kernels.neighborhood_attention import natten, reference

FUSED = ["cpu", "triton"]


class Geometry(NamedTuple):
    size: tuple[int, ...]
    kernel: int | tuple[int, ...]
    dilation: int | tuple[int, ...] = 1
    stride: int | tuple[int, ...] = 1
    causal: bool | tuple[bool, ...] = False
    bias: bool = True
    extra: int = 0
    batch: int = 2
    heads: int = 2
    dim: int = 8

    @property
    def axes(self):
        """Length, window, dilation, stride and causality of each axis."""
        rank = len(self.size)
        rules = (self.kernel, self.dilation, self.stride, self.causal)
        return list(
            zip(
                self.size, *(r if isinstance(r, tuple) else (r,) * rank for r in rules), strict=True
            )
        )

    @property
    def rules(self):
        """Arguments of the op by name."""
        return {
            "kernel_size": self.kernel,
            "dilation": self.dilation,
            "stride": self.stride,
            "is_causal": self.causal,
        }


GEOMETRIES = {
    "row": Geometry((11,), 5),
    "row_even_strided": Geometry((13,), 4, stride=3, extra=3),
    "row_causal": Geometry((10,), 3, 2, 2, True, dim=3),
    "row_of_blocks": Geometry((10,), 4, stride=4, bias=False),
    "map": Geometry((7, 6), 3, dim=24),
    "map_is_window": Geometry((5, 3), (5, 3), dim=16),
    "map_of_dilated_windows": Geometry((6, 8), (3, 4), 2, heads=1, dim=16),
    "map_mixed": Geometry((6, 9), (2, 3), (1, 2), (2, 3), (False, True), extra=1),
    "map_causal": Geometry((5, 6), (3, 4), (1, 1), (1, 2), (True, True)),
    "map_even_strided": Geometry((9, 8), (4, 6), 1, (3, 5), bias=False, dim=5),
    "map_wide_heads": Geometry((4, 5), 3, heads=1, dim=72),
    "map_single": Geometry((3, 4), 1, extra=2),
    "volume": Geometry((3, 4, 5), (2, 3, 3), (1, 1, 1), (1, 2, 1), batch=1, heads=1),
    "volume_mixed": Geometry(
        (4, 3, 6), (2, 2, 3), (2, 1, 2), (1, 2, 2), (False, True, False), extra=2, heads=1
    ),
}
CPU_GEOMETRIES = {
    **GEOMETRIES,
    "long_row": Geometry((700,), 13, 1, 3, extra=5, dim=20),
    "long_dilated_row": Geometry((811,), 6, 3, heads=1),
    "wide_causal_map": Geometry((4, 300), (3, 9), 1, (1, 2), (False, True), heads=1, dim=33),
    "map_of_tiles": Geometry((13, 35), (5, 7), dim=32),
    "map_of_tiles_strided": Geometry((11, 53), (5, 8), 1, (2, 4), extra=4),
    "map_dilated": Geometry((23, 38), (7, 5), (3, 2), batch=1, dim=32),
    "map_large_window": Geometry((29, 27), 11, dim=16, batch=1),
    "map_all_with_all": Geometry((14, 14), 7, dim=32, batch=3, extra=3),
    "groups_all_with_all": Geometry((11, 13), (3, 4), (3, 2), (1, 2), (False, True), batch=3),
    "wide_heads": Geometry((9, 20), 3, dim=136, heads=1),
    "long_volume": Geometry((5, 6, 40), (3, 2, 5), (1, 2, 1), (1, 1, 2), batch=1),
}


def make(geometry, dtype=torch.float32):
    """Inputs as a fused projection gives them, and the op as a function of them."""
    g = geometry
    inputs = {"qkv": torch.randn(g.batch, *g.size, 3, g.heads, g.dim, dtype=dtype)}
    if g.bias:
        table = (2 * kernel - 1 for _, kernel, *_ in g.axes)
        inputs["rpb"] = torch.randn(g.heads, *table, dtype=dtype)
    if g.extra:
        inputs["extra"] = torch.randn(2, g.batch, g.extra, g.heads, g.dim, dtype=dtype)

    def op(impl, qkv, rpb=None, extra=(None, None)):
        return neighborhood_attention(
            *qkv.unbind(-3),
            **g.rules,
            rpb=rpb,
            additional_keys=extra[0],
            additional_values=extra[1],
            impl=impl,
        )

    return op, inputs


def seen_from(position, length, kernel, dilation, stride, causal):
    """Positions of an axis that a query sees: a window among those of its own group."""
    group = [p for p in range(length) if p % dilation == position % dilation]
    place = group.index(position)
    sharing = range(place // stride * stride, place // stride * stride + stride)
    if causal:
        leader = min(sharing[-1], len(group) - 1)
        return [group[p] for p in range(leader - kernel + 1, place + 1) if p >= 0]
    leader = min(sharing[stride // 2], len(group) - 1)
    start = leader - kernel // 2
    while start + kernel > len(group):
        start -= 1
    while start < 0:
        start += 1
    return group[start : start + kernel]


def by_loops(q, k, v, axes, rpb=None, extra_k=None, extra_v=None):
    """Every query, and one key at a time."""
    batch, *size, heads, dim = q.shape
    out = torch.empty_like(q)
    for query in itertools.product(*map(range, size)):
        seen = [seen_from(p, *rule) for p, rule in zip(query, axes, strict=True)]
        for b, h in itertools.product(range(batch), range(heads)):
            logits, values = [], []
            for key in itertools.product(*seen):
                logit = (q[(b, *query, h)] @ k[(b, *key, h)]) * dim**-0.5
                if rpb is not None:
                    index = (
                        (there - here) // dilation + kernel - 1
                        for there, here, (_, kernel, dilation, *_) in zip(
                            key, query, axes, strict=True
                        )
                    )
                    logit = logit + rpb[(h, *index)]
                logits.append(logit)
                values.append(v[(b, *key, h)])
            for i in range(0 if extra_k is None else extra_k.shape[1]):
                logits.append((q[(b, *query, h)] @ extra_k[b, i, h]) * dim**-0.5)
                values.append(extra_v[b, i, h])
            out[(b, *query, h)] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_is_the_definition(name):
    geometry = GEOMETRIES[name]._replace(batch=1)
    op, inputs = make(geometry, torch.float64)
    wanted = by_loops(
        *inputs["qkv"].unbind(-3),
        geometry.axes,
        inputs.get("rpb"),
        *inputs.get("extra", (None, None)),
    )
    torch.testing.assert_close(op("reference", **inputs), wanted)


@pytest.mark.parametrize("causal", [False, True])
def test_windows_of_all_short_axes(causal):
    """Which positions are seen, from the definition, for every rule that an axis can have."""
    for length, kernel, dilation in itertools.product(range(1, 15), range(1, 8), range(1, 4)):
        for stride in range(1, kernel + 1):
            rule = length, kernel, dilation, stride, causal
            if kernel * dilation > length:
                continue
            keys, valid = reference.neighbors(*rule)
            for position in range(length):
                assert keys[position][valid[position]].tolist() == seen_from(position, *rule), rule


@pytest.mark.parametrize(
    "rule, position, seen",
    [
        ((6, 3, 1, 1, True), 1, [0, 1]),
        ((6, 3, 1, 1, True), 5, [3, 4, 5]),
        ((12, 6, 1, 1, False), 5, [2, 3, 4, 5, 6, 7]),
        ((10, 4, 1, 4, False), 5, [4, 5, 6, 7]),
        ((10, 4, 1, 4, False), 9, [6, 7, 8, 9]),
        ((11, 3, 3, 1, False), 6, [3, 6, 9]),
        ((11, 3, 3, 1, False), 8, [2, 5, 8]),
    ],
)
def test_windows_are_those_of_natten(rule, position, seen):
    """Recorded from NATTEN 0.21."""
    keys, valid = reference.neighbors(*rule)
    assert keys[position][valid[position]].tolist() == seen == seen_from(position, *rule)


NATTEN_GEOMETRIES = {
    "row_even": Geometry((12,), 4, bias=False),
    "row_causal": Geometry((12,), 5, 2, 2, True, bias=False),
    "map": Geometry((9, 8), 3, bias=False, dim=16),
    "map_even_strided": Geometry((10, 10), 4, 1, 4, bias=False),
    "map_extra": Geometry((8, 7), (4, 3), (1, 2), (2, 1), (False, True), bias=False, extra=5),
    "volume": Geometry((6, 5, 4), (3, 2, 4), (1, 2, 1), (1, 2, 3), (False, False, True), False),
}


@pytest.mark.parametrize("name", NATTEN_GEOMETRIES)
def test_equals_natten(name):
    """NATTEN's own path on the CPU, by FlexAttention."""
    pytest.importorskip("natten")
    geometry = NATTEN_GEOMETRIES[name]
    op, inputs = make(geometry)
    with torch.no_grad():
        wanted = natten.forward(
            *(x.contiguous() for x in inputs["qkv"].unbind(-3)),
            *inputs.get("extra", (None, None)),
            *zip(*(rule for _, *rule in geometry.axes), strict=True),
            geometry.dim**-0.5,
        )
    torch.testing.assert_close(op("reference", **inputs), wanted)
    torch.testing.assert_close(op("cpu", **inputs), wanted)


def fill(*shape):
    """The rule that recorded results were computed from."""
    j = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    u = ((1103 * j * j + 7919 * j + 12345) % 65537).double() / 65537 - 0.5
    return u.reshape(shape)


def check_recorded(out, first, last, total, norm):
    summary = [*out.flatten()[:4], out.flatten()[-1], out.sum(), out.norm()]
    wanted = torch.tensor([*first, last, total, norm], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(summary).double(), wanted, rtol=1e-5, atol=1e-5)


# First four elements, last, sum and norm of the output, and number of pairs of query and key, as
# NATTEN 0.21 gives them for queries by `fill`.
RECORDED = {
    "row_even": (
        Geometry((12,), 4),
        ([0.93343215, -0.17999651, -0.36573956, 0.00017232], 0.79411185, 28.256751, 8.967525),
        48,
    ),
    "row_causal": (
        Geometry((12,), 5, 2, 2, True),
        ([1.24317466, -1.07952881, -0.60265124, -0.00917072], -0.39717598, 16.910534, 10.299741),
        38,
    ),
    "map_mixed": (
        Geometry((8, 7), (4, 3), (1, 2), (2, 1), (False, True)),
        ([-0.47087501, 0.72033819, -0.27848494, -0.75974720], 0.35296033, -32.510846, 16.211080),
        480,
    ),
    "map_dilated": (
        Geometry((8, 8), 3, (2, 1)),
        ([-0.65887317, 0.87977861, 0.59243029, 0.77684762], -0.34501064, -32.654934, 16.670191),
        576,
    ),
    "volume": (
        Geometry((6, 5, 4), (3, 2, 4), (1, 2, 1), (1, 2, 3), (False, False, True)),
        ([-0.22860158, 0.06568877, 0.62946994, 0.37556371], 0.17187146, -3.773710, 21.128662),
        1800,
    ),
    "map_of_blocks": (
        Geometry((10, 10), 4, 1, 4),
        ([-0.26605984, 0.82505416, -0.06311801, 0.24991937], -0.26295938, -29.736227, 17.323220),
        1600,
    ),
}


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_recorded_results_of_natten(impl, name):
    geometry, results, pairs = RECORDED[name]
    q = 12**0.5 * fill(1, *geometry.size, 2, 8)
    q = q if impl == "reference" else q.float()
    k, v = 0.9 * q.flip(-1), q.roll(1, -1)
    check_recorded(neighborhood_attention(q, k, v, **geometry.rules, impl=impl), *results)
    counts = [reference.neighbors(*rule)[1].sum() for rule in geometry.axes]
    assert torch.stack(counts).prod() == pairs


# The authors' module of 8 channels and 2 heads: window, dilation, map, whether it has a bias.
MODULES = [
    (
        *(3, 1, (5, 6), True),
        ([0.08047532, 0.02713936, 0.94739020, -0.04799720], 0.63502110, 12.605792, 9.842746),
    ),
    (
        *(3, 2, (7, 8), True),
        ([0.20362971, 0.37751908, 0.61971060, -0.32116229], 0.76162321, 18.564948, 13.713253),
    ),
    (
        *(7, 1, (5, 6), True),
        ([0.12310604, 0.38296079, 0.86868017, -0.72172549], 0.44030200, 10.561202, 7.804540),
    ),
    (
        *(3, 1, (5, 6), False),
        ([0.12355415, 0.02178949, 1.02975377, -0.15020799], 0.57711639, 13.147603, 9.977266),
    ),
    (
        *(3, 2, (7, 8), False),
        ([0.29774944, 0.33770477, 0.69161013, -0.35396052], 0.73467670, 18.670476, 13.634754),
    ),
]


@pytest.mark.parametrize(("kernel", "dilation", "size", "biased", "results"), MODULES)
@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_recorded_results_of_the_authors_module(impl, kernel, dilation, size, biased, results):
    """Projections around the op; maps smaller than a window are filled up with zeros."""
    dtype = torch.float64 if impl == "reference" else torch.float32
    weights = [1.5**0.5 * fill(24, 8), 0.5 * fill(24), 1.5**0.5 * fill(8, 8), 0.5 * fill(8)]
    w_qkv, b_qkv, w_proj, b_proj = (x.to(dtype) for x in weights)
    rpb = 0.5 * fill(2, 2 * kernel - 1, 2 * kernel - 1).to(dtype)
    x = 12**0.5 * fill(1, *size, 8).to(dtype)
    below, right = (max(kernel * dilation - side, 0) for side in size)
    x = F.pad(x, (0, 0, 0, right, 0, below))
    qkv = F.linear(x, w_qkv, b_qkv).unflatten(-1, (3, 2, 4))
    rpb = rpb if biased else None
    out = neighborhood_attention(*qkv.unbind(3), kernel, dilation, rpb=rpb, impl=impl)
    out = F.linear(out.flatten(3), w_proj, b_proj)
    check_recorded(out[:, : size[0], : size[1]], *results)


@pytest.mark.parametrize("name", CPU_GEOMETRIES)
def test_cpu_is_as_exact_as_the_reference(name):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        op, inputs = make(CPU_GEOMETRIES[name], dtype)
        assert_as_exact_as_reference(op, inputs, "cpu")


@pytest.mark.parametrize("name", GEOMETRIES)
def test_triton_is_as_exact_as_the_reference(name):
    op, inputs = make(GEOMETRIES[name]._replace(batch=1, heads=1))
    assert_as_exact_as_reference(op, inputs, "triton")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["row_even_strided", "row_causal"])
def test_triton_is_as_exact_as_the_reference_in_16_bits(name, dtype):
    op, inputs = make(GEOMETRIES[name], dtype)
    assert_as_exact_as_reference(op, inputs, "triton")


@pytest.mark.heavy
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("impl", "length"),
    [*(("cpu", length) for length in (7, 12, 16, 17, 33, 64)), ("triton", 7), ("triton", 17)],
)
def test_all_windows_of_an_axis(impl, length, causal):
    """Every window, dilation and stride along the last axis of a map."""
    for kernel, dilation in itertools.product((1, 2, 3, 4, 7, 8, 13), (1, 2, 3, 5)):
        for stride in {1, 2, 3, kernel // 2 + 1, kernel}:
            if kernel * dilation > length or stride > kernel:
                continue
            g = Geometry(
                *((3, length), (2, kernel), (1, dilation), (1, stride), (False, causal)),
                *(True, 1, 1, 1, 4),
            )
            op, inputs = make(g)
            assert_as_exact_as_reference(op, inputs, impl)


@pytest.mark.heavy
@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (7, 7)], ids=str)
def test_cpu_at_the_maps_of_models(size):
    for dilation in {1, size[0] // 7}:
        for dtype in (torch.float32, torch.bfloat16):
            op, inputs = make(Geometry(size, 7, dilation, dim=32), dtype)
            assert_as_exact_as_reference(op, inputs, "cpu")


def test_a_window_that_is_the_map_is_full_attention():
    op, inputs = make(Geometry((5, 6), (5, 6), bias=False))
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in inputs["qkv"].unbind(3))
    wanted = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(1, (5, 6))
    for impl in ("reference", *FUSED):
        torch.testing.assert_close(op(impl, **inputs), wanted)


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_windows_larger_than_the_map_are_clipped_or_refused(impl):
    """With dilation 2 a row of 9 has groups of 5 and 4: 4 fit, and a row of 5 holds all."""
    q, k, v = torch.randn(3, 1, 5, 9, 2, 8)
    rpb = torch.randn(2, 13, 15)
    op = neighborhood_attention
    with pytest.raises(ValueError, match=r"kernel_size \(7, 8\) .* larger than the map \(5, 9\)"):
        op(q, k, v, (7, 8), (1, 2), rpb=rpb, impl=impl)
    clipped = op(q, k, v, (7, 8), (1, 2), (3, 8), rpb=rpb, clip=True, impl=impl)
    central = rpb[:, 2:11, 4:11]
    wanted = op(q, k, v, (5, 4), (1, 2), (3, 4), rpb=central, impl="reference")
    torch.testing.assert_close(clipped, wanted)


@pytest.mark.parametrize(
    "size, dilation",
    [((3, 4), 5), ((3, 20), (8, 1)), ((65, 3), (1, 5)), ((2, 2, 9), (3, 1, 2))],
    ids=str,
)
@pytest.mark.parametrize("impl", FUSED)
def test_dilations_larger_than_the_map(impl, size, dilation):
    """Some groups are empty then, and others a single position along an axis."""

    def op(impl, q, k, v, extra):
        return neighborhood_attention(
            *(q, k, v, 4, dilation),
            additional_keys=extra[0],
            additional_values=extra[1],
            clip=True,
            impl=impl,
        )

    inputs = {name: torch.randn(1, *size, 1, 4) for name in "qkv"}
    assert_as_exact_as_reference(op, {**inputs, "extra": torch.randn(2, 1, 2, 1, 4)}, impl)


@pytest.mark.parametrize("impl", FUSED)
def test_any_strides(impl):
    op, inputs = make(GEOMETRIES["map_mixed"]._replace(batch=1, heads=1))
    wanted = gradients(lambda **leaves: op("reference", **leaves), inputs)
    turned = {
        name: x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        for name, x in inputs.items()
    }
    spread = {name: torch.stack([x, x], -1)[..., 0] for name, x in inputs.items()}
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(wanted["out"].shape, generator=generator, dtype=torch.float64).float()
    crooked = cotangent.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    for strided, grad in ((turned, cotangent), (spread, crooked)):
        leaves = {name: x.detach().requires_grad_() for name, x in strided.items()}
        out = op(impl, **leaves)
        torch.testing.assert_close(out, wanted["out"])
        grads = torch.autograd.grad(out, list(leaves.values()), grad)
        for name, value in zip(leaves, grads, strict=True):
            torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("impl", FUSED)
def test_expanded_inputs_and_gradients(impl):
    """One image for a whole batch, and the gradient that a sum sends back."""
    op, inputs = make(GEOMETRIES["map"])
    leaves = [inputs["qkv"][:1].requires_grad_(), inputs["rpb"].requires_grad_()]

    def slopes(impl):
        return torch.autograd.grad(
            op(impl, leaves[0].expand(2, *leaves[0].shape[1:]), leaves[1]).sum(), leaves
        )

    for fused, plain in zip(slopes(impl), slopes("reference"), strict=True):
        torch.testing.assert_close(fused, plain)


@pytest.mark.parametrize("impl", FUSED)
def test_gradients_of_some_inputs_only(impl):
    op, inputs = make(GEOMETRIES["row_even_strided"])
    rpb = inputs.pop("rpb").requires_grad_()
    wanted, got = (
        torch.autograd.grad(op(i, rpb=rpb, **inputs).square().sum(), rpb)[0]
        for i in ("reference", impl)
    )
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_empty_batch(impl):
    op, inputs = make(GEOMETRIES["map_mixed"])
    inputs["qkv"], inputs["extra"] = inputs["qkv"][:0], inputs["extra"][:, :0]
    results = gradients(lambda **leaves: op(impl, **leaves), inputs)
    assert results["out"].shape == (0, 6, 9, 2, 8)
    for name, value in results.items():
        assert value.shape == inputs.get(name, results["out"]).shape
        assert not value.any(), name


@pytest.mark.parametrize("impl", FUSED)
def test_no_additional_keys(impl):
    op, inputs = make(GEOMETRIES["map"])
    wanted = op(impl, **inputs)
    none = torch.randn(2, 2, 0, 2, 24, requires_grad=True)
    out = op(impl, **inputs, extra=none)
    torch.testing.assert_close(out, wanted)
    assert torch.autograd.grad(out.sum(), none)[0].shape == none.shape


@pytest.mark.parametrize(
    "impl, name",
    [
        ("cpu", "long_row"),
        ("cpu", "map_of_tiles_strided"),
        ("cpu", "map_all_with_all"),
        ("cpu", "long_volume"),
        ("triton", "row_even_strided"),
    ],
)
def test_is_deterministic_for_any_number_of_threads(impl, name):
    op, inputs = make(CPU_GEOMETRIES[name])
    assert_deterministic(lambda **leaves: op(impl, **leaves), inputs)


@pytest.mark.parametrize("impl, width", [("cpu", 2), ("cpu", 64), ("triton", 2)])
def test_large_offsets(impl, width):
    """Rows further apart than 32 bits count, in memory that is mapped but hardly touched."""
    row = 2**29 + 64 * 16
    strided = (1, 6, width, 1, 16), (0, row, 16, 16, 1)
    x = torch.empty(6 * row).as_strided(*strided)
    small = torch.randn(1, 6, width, 1, 16)
    x.copy_(small)

    def slopes(x):
        leaves = [x.detach().requires_grad_() for _ in range(3)]
        out = neighborhood_attention(*leaves, (3, 2), impl=impl)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    for far, near in zip(slopes(x), slopes(small), strict=True):
        assert torch.equal(far, near)


def test_stores_nothing_that_grows_with_windows(monkeypatch):
    """No result is larger than the inputs, and scratch memory does not grow with rows."""

    def largest(height, kernel):
        sizes = {"result": [0], "scratch": [0]}
        op, inputs = make(Geometry((height, 32), kernel, dim=16))

        def watch(function):
            def watched(*args, **kwargs):
                x = function(*args, **kwargs)
                sizes["scratch" if x.dtype == torch.uint8 else "result"].append(x.numel())
                return x

            return watched

        with monkeypatch.context() as patch:
            patch.setattr(_threads, "_memory", [])
            for owner, name in (
                (torch, "empty"),
                (torch.Tensor, "new_empty"),
                (torch.Tensor, "new_zeros"),
            ):
                patch.setattr(owner, name, watch(getattr(owner, name)))
            gradients(lambda **leaves: op("cpu", **leaves), inputs)
        assert max(sizes["result"]) <= inputs["qkv"].numel() // 3
        return max(sizes["scratch"])

    assert 0 < largest(256, 7) < 1.1 * largest(128, 7)


@pytest.mark.parametrize(
    "impl, name",
    [("cpu", "map_mixed"), ("cpu", "map_of_tiles"), ("cpu", "volume"), ("triton", "row_causal")],
)
def test_operators_are_registered_rightly(impl, name):
    geometry = CPU_GEOMETRIES[name]._replace(batch=1, heads=1)
    _, inputs = make(geometry)
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    q, k, v = (x.detach().requires_grad_() for x in inputs["qkv"].unbind(-3))
    extra = inputs["extra"].detach().unbind(0) if geometry.extra else (None, None)
    extra = tuple(None if x is None else x.requires_grad_() for x in extra)
    rules = map(list, zip(*(rule for _, *rule in geometry.axes), strict=True))
    opcheck(
        torch.ops.visattn.neighborhood_attention.default,
        (q, k, v, inputs.get("rpb"), *extra, *rules, 0.3, impl),
    )


def test_compiles_whole_for_any_size():
    def twice(qkv, rpb):
        x = neighborhood_attention(*qkv.unbind(3), (3, 4), (2, 1), rpb=rpb, impl="cpu")
        return neighborhood_attention(x, x, x, (3, 4), is_causal=True, rpb=rpb, impl="cpu")

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((6, 7), (9, 5), (8, 40)):
        _, inputs = make(Geometry(size, (3, 4)))
        wanted = gradients(twice, inputs)
        for name, value in gradients(compiled, inputs).items():
            torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", ["row_causal", "map_mixed", "volume"])
def test_exports_plain_torch_unless_told(name):
    op, inputs = make(GEOMETRIES[name]._replace(batch=2))

    class Model(torch.nn.Module):
        def forward(self, qkv):
            return op(None, qkv, inputs["rpb"])

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    _, kernel, dilation, *_ = GEOMETRIES[name].axes[0]
    length = torch.export.Dim("length", min=kernel * dilation)
    dynamic = ({0: torch.export.Dim("batch"), 1: length},)
    arguments = (inputs["qkv"],)
    plain = torch.export.export(Model(), arguments, dynamic_shapes=dynamic)
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), arguments, dynamic_shapes=dynamic)
    assert any("visattn" in name for name in operators(fused))
    larger = torch.cat([inputs["qkv"], inputs["qkv"].flip(1)], 1)
    larger = torch.cat([larger, larger.flip(0)])
    torch.testing.assert_close(plain.module()(larger), fused.module()(larger))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_computes_in_low_precision(impl):
    op, inputs = make(GEOMETRIES["map_mixed"])
    with torch.autocast("cpu", torch.bfloat16):
        out = op(impl, **inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), op(impl, **inputs), atol=0.05, rtol=0.05)


def test_first_and_second_derivatives_of_the_reference():
    g = Geometry((3, 4), (2, 3), (1, 1), (1, 2), (True, False), True, 1, 1, 1, 2)
    op, inputs = make(g, torch.float64)
    leaves = tuple(x.requires_grad_() for x in inputs.values())

    def function(*tensors):
        return op("reference", **dict(zip(inputs, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_second_derivatives_need_the_reference():
    op, inputs = make(GEOMETRIES["row_of_blocks"])
    qkv = inputs["qkv"].requires_grad_()
    (slope,) = torch.autograd.grad(op("cpu", qkv).square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope.sum(), qkv)


X = torch.randn(1, 6, 7, 2, 8)
EXTRA = torch.randn(1, 3, 2, 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": X[0, 0]}, "one to three spatial axes"),
        ({"k": X[:, :5]}, r"all the same; got .* k \(1, 5, 7, 2, 8\)"),
        ({"v": X.double()}, "one dtype; got .* torch.float64: cast them"),
        ({"kernel_size": 0}, "kernel_size must be at least 1"),
        ({"kernel_size": 2.5}, "kernel_size must be made of integers"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must have one value, or one for each of the 2"),
        ({"dilation": (1, 0)}, "dilation must be at least 1"),
        ({"dilation": 3}, r"times dilation \(3, 3\) is larger than the map \(6, 7\); .*clip=True"),
        ({"stride": (1, 4)}, r"stride must be at most kernel_size \(3, 3\); got \(1, 4\)"),
        ({"is_causal": (True,)}, "is_causal must have one value"),
        ({"rpb": torch.randn(2, 3, 3)}, r"rpb must be .* = \(2, 5, 5\); got \(2, 3, 3\)"),
        ({"additional_keys": EXTRA}, "must be given together"),
        ({"additional_keys": EXTRA, "additional_values": EXTRA[:, :2]}, r"\(B, L, heads, dim\)"),
        ({"additional_keys": EXTRA[0], "additional_values": EXTRA[0]}, r"\(B, L, heads, dim\)"),
        ({"additional_keys": EXTRA.half(), "additional_values": EXTRA.half()}, "dtype of q"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        neighborhood_attention(**{"q": X, "k": X, "v": X, "kernel_size": 3, **change})


def test_an_implementation_that_cannot_run_says_why():
    with pytest.raises(RuntimeError, match="natten.*tensors on cuda, and these are on cpu"):
        neighborhood_attention(X, X, X, 3, impl="natten")
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        neighborhood_attention(*[X.double()] * 3, 3, impl="cpu")
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        neighborhood_attention(X, X, X, 3, rpb=torch.randn(2, 5, 5).double(), impl="triton")
