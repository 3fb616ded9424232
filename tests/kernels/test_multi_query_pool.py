"""Multi-query pooling against its definition, the authors' module, and attention it stands for."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from torch.library import opcheck

from visattn.kernels import multi_query_pool, query_attention, use_impl

FUSED = ["cpu", "triton"]
GOLDENS = Path(__file__).parents[1] / "goldens"


class Geometry(NamedTuple):
    tokens: int
    dim: int
    queries: int
    batch: int = 2
    by_item: bool = False
    values: int | None = None
    out: int | None = None


GEOMETRIES = {
    "plain": Geometry(50, 40, 8),
    "projected": Geometry(49, 24, 6, out=18),
    "by_item": Geometry(70, 72, 3, batch=3, by_item=True),
    "own_values": Geometry(33, 16, 40, values=24),
    "own_values_by_item": Geometry(17, 33, 5, by_item=True, values=7, out=10),
    "one_of_each": Geometry(1, 1, 1, batch=1, out=1),
    "more_items_than_sums": Geometry(9, 20, 2, batch=19),
}
CPU_GEOMETRIES = {
    **GEOMETRIES,
    "wide": Geometry(196, 768, 32, out=768),
    "many_tokens": Geometry(1500, 64, 4, batch=1),
    "many_queries": Geometry(20, 48, 130, batch=1),
    "many_items": Geometry(5, 90, 1, batch=70, out=45),
}


def make(geometry, dtype=torch.float32):
    """Inputs, and the op as a function of them."""
    g = geometry
    wide = g.values or g.dim
    inputs = {
        "x": torch.randn(g.batch, g.tokens, g.dim, dtype=dtype),
        "queries": torch.randn(*([g.batch] if g.by_item else []), g.queries, g.dim, dtype=dtype),
    }
    if g.values:
        inputs["values"] = torch.randn(g.batch, g.tokens, wide, dtype=dtype)
    if g.out:
        inputs["value_weight"] = torch.randn(g.out, wide, dtype=dtype) * wide**-0.5
        inputs["value_bias"] = torch.randn(g.out, dtype=dtype)

    def op(impl, **tensors):
        return multi_query_pool(**tensors, impl=impl)

    return op, inputs


@pytest.mark.parametrize("name", GEOMETRIES)
def test_reference_is_the_definition(name):
    """One item, one query and one token at a time, projected before they are summed."""
    op, inputs = make(GEOMETRIES[name], torch.float64)
    x, queries = inputs["x"], inputs["queries"]
    values = inputs.get("values", x)
    count = queries.shape[-2]
    rows = []
    for b, tokens in enumerate(x):
        own = queries[b] if queries.ndim == 3 else queries
        for j, query in enumerate(own):
            exps = [((query @ token) * x.shape[2] ** -0.5).exp() for token in tokens]
            group = torch.eye(values.shape[2], dtype=x.dtype)
            bias = 0
            if "value_weight" in inputs:
                group = inputs["value_weight"].chunk(count)[j]
                bias = inputs["value_bias"].chunk(count)[j]
            terms = zip(exps, values[b], strict=True)
            rows.append(sum(e / sum(exps) * (group @ v) for e, v in terms) + bias)
    wanted = torch.stack(rows).view(op("reference", **inputs).shape)
    torch.testing.assert_close(op("reference", **inputs), wanted)


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_equals_the_authors_module(impl, rule_made):
    record = json.loads((GOLDENS / "poolings.json").read_text())["poolings"]["ep_m32"]
    weights = {key: rule_made(key, tuple(shape)) for key, shape in record["keys"].items()}
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 196, 768))).float()
    out = multi_query_pool(x, weights["cls_token"][0], weights["v.weight"], impl=impl)
    wanted = torch.from_numpy(np.load(GOLDENS / "poolings.npz")["ep_m32"])
    assert (out - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("impl", ["reference", *FUSED])
def test_stands_for_attention_with_projected_keys(impl):
    """Cross-attention of a query by four heads: keys fold into it, and their bias into nothing."""
    x, query = torch.randn(2, 30, 32), torch.randn(32)
    key, value = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    q, k, v = (t.unflatten(-1, (4, 8)).movedim(-2, -3) for t in (query[None], key(x), value(x)))
    wanted = F.scaled_dot_product_attention(q.expand(2, -1, -1, -1), k, v).flatten(1)
    folded = torch.einsum("hc,hcd->hd", query.view(4, 8), key.weight.view(4, 8, 32))
    out = multi_query_pool(x, folded, value.weight, value.bias, scale=8**-0.5, impl=impl)
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("impl", FUSED)
def test_queries_of_zeros_average(impl):
    x, weight = torch.randn(2, 60, 24), torch.randn(12, 24)
    out = multi_query_pool(x, torch.zeros(4, 24), weight, impl=impl)
    torch.testing.assert_close(out, x.mean(1) @ weight.T)


@pytest.mark.parametrize("impl", FUSED)
def test_large_logits(impl):
    """Softmaxes of logits that overflow an exponential are those of the largest one."""
    x, queries = torch.randn(1, 40, 16), 1e3 * torch.randn(3, 16)
    weights = (queries @ x[0].T).argmax(1)
    torch.testing.assert_close(multi_query_pool(x, queries, impl=impl)[0], x[0, weights])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("impl", "name"),
    [("cpu", name) for name in CPU_GEOMETRIES] + [("triton", name) for name in GEOMETRIES],
)
def test_is_as_exact_as_the_reference(impl, name, dtype):
    op, inputs = make(CPU_GEOMETRIES[name], dtype)
    assert_as_exact_as_reference(lambda impl, **leaves: op(impl, **leaves), inputs, impl)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("wanted", ["x", "queries", "values", "value_weight", "value_bias"])
def test_gradients_of_some(impl, wanted):
    """Only what is asked for is computed, and it does not depend on what else is."""
    op, inputs = make(GEOMETRIES["own_values_by_item"])
    whole = gradients(lambda **leaves: op(impl, **leaves), inputs)
    fixed = {name: x for name, x in inputs.items() if name != wanted}
    part = gradients(lambda **leaf: op(impl, **fixed, **leaf), {wanted: inputs[wanted]})
    torch.testing.assert_close(part[wanted], whole[wanted], rtol=0, atol=0)


@pytest.mark.parametrize("impl", FUSED)
def test_any_strides(impl):
    op, inputs = make(GEOMETRIES["own_values_by_item"])
    turned = {
        name: x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
        for name, x in inputs.items()
    }
    halves = {name: torch.stack([x, x], -1)[..., 0] for name, x in inputs.items()}
    wanted = gradients(lambda **leaves: op("reference", **leaves), inputs)
    for strided in (turned, halves):
        torch.testing.assert_close(op(impl, **strided), wanted["out"])
        for name, value in gradients(lambda **leaves: op(impl, **leaves), strided).items():
            torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


def test_queries_that_share_memory():
    """The same query again, and one query for all items by a stride of zero."""
    x, query = torch.randn(3, 20, 16), torch.randn(1, 16)
    wanted = multi_query_pool(x, query, impl="reference")
    for impl in FUSED:
        for shared in (query.expand(5, 16), query.expand(3, 5, 16)):
            out = multi_query_pool(x, shared, impl=impl)
            torch.testing.assert_close(out, wanted.expand(3, 5, 16))


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("name", ["projected", "by_item"])
def test_empty_batch(impl, name):
    op, inputs = make(GEOMETRIES[name]._replace(batch=0))
    results = gradients(lambda **leaves: op(impl, **leaves), inputs)
    assert results["out"].shape == op("reference", **inputs).shape
    assert not any(x.any() for x in results.values())


@pytest.mark.parametrize("impl", FUSED)
def test_is_deterministic_for_any_number_of_threads(impl):
    op, inputs = make(GEOMETRIES["more_items_than_sums"])
    assert_deterministic(lambda **leaves: op(impl, **leaves), inputs)


def test_large_offsets():
    """Rows further apart than 32 bits count, in memory that is mapped but hardly touched."""
    row = 2**29 + 16
    x = torch.empty(5 * row + 16).as_strided((1, 6, 16), (0, row, 1))
    small, queries = torch.randn(1, 6, 16), torch.randn(3, 16)
    x.copy_(small)
    torch.testing.assert_close(
        multi_query_pool(x, queries, impl="cpu"),
        multi_query_pool(small, queries, impl="reference"),
    )


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("save", [True, False])
def test_operators_are_registered_rightly(impl, save):
    for name in ("plain", "own_values_by_item"):
        _, inputs = make(GEOMETRIES[name])
        names = "x", "values", "queries", "value_weight"
        tensors = [inputs.get(name) for name in names]
        if save:
            tensors = [x if x is None else x.requires_grad_() for x in tensors]
        opcheck(torch.ops.visattn.multi_query_pool.default, (*tensors, 0.3, save, impl))


def test_compiles_whole_for_any_size():
    op, inputs = make(GEOMETRIES["projected"])

    def twice(x, **others):
        return op("cpu", x=x, **others) + op("cpu", x=2 * x, **others)

    torch._dynamo.reset()
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager", dynamic=True)
    wanted = gradients(twice, inputs)
    for name, value in gradients(compiled, inputs).items():
        torch.testing.assert_close(value, wanted[name], msg=lambda m, name=name: f"{name}: {m}")
    larger = {**inputs, "x": torch.randn(5, 77, 24)}
    torch.testing.assert_close(compiled(**larger), twice(**larger))


def test_exports_plain_torch_unless_told():
    _, inputs = make(GEOMETRIES["plain"])

    class Model(torch.nn.Module):
        def forward(self, x, queries):
            return multi_query_pool(x, queries)

    def operators(program):
        return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}

    plain = torch.export.export(Model(), tuple(inputs.values()))
    assert not any("visattn" in name for name in operators(plain))
    with use_impl("cpu"):
        fused = torch.export.export(Model(), tuple(inputs.values()))
    assert any("visattn" in name for name in operators(fused))
    torch.testing.assert_close(plain.module()(*inputs.values()), fused.module()(*inputs.values()))


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_autocast_computes_in_low_precision(impl):
    op, inputs = make(GEOMETRIES["projected"])
    with torch.autocast("cpu", torch.bfloat16):
        out = op(impl, **inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), op(impl, **inputs), atol=0.05, rtol=0.05)


def test_second_derivatives_need_the_reference():
    op, inputs = make(GEOMETRIES["plain"])
    x = inputs["x"].requires_grad_()

    def slope(impl):
        out = op(impl, x=x, queries=inputs["queries"])
        return torch.autograd.grad(out.square().sum(), x, create_graph=True)[0]

    assert torch.autograd.grad(slope("reference").sum(), x)[0].isfinite().all()
    with pytest.raises(RuntimeError, match='impl="reference"'):
        torch.autograd.grad(slope("cpu").sum(), x)


def test_weights_to_look_at():
    x, queries = torch.randn(2, 30, 16), torch.randn(3, 16)
    weights = query_attention(x, queries)
    assert weights.shape == (2, 3, 30)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(weights @ x, multi_query_pool(x, queries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(2, 0, 8)}, "at least one token"),
        ({"queries": torch.randn(3, 9)}, r"queries must be \(M, D\)"),
        ({"queries": torch.randn(3, 2, 8)}, r"queries must be .*\(3, 2, 8\)"),
        ({"queries": torch.randn(0, 8)}, "at least one; got none"),
        ({"values": torch.randn(2, 5, 8)}, r"values must be \(B, N, E\)"),
        ({"value_weight": torch.randn(8, 8)}, "divisible by the 3 queries"),
        ({"value_weight": torch.randn(9, 7)}, r"value_weight must be \(D_out, 8\)"),
        ({"value_bias": torch.randn(9)}, "value_bias needs a value_weight"),
        ({"value_weight": torch.randn(9, 8), "value_bias": torch.randn(8)}, r"must be \(9,\)"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.randn(2, 6, 8), "queries": torch.randn(3, 8), **change}
    with pytest.raises(ValueError, match=message):
        multi_query_pool(**arguments)


def test_an_implementation_that_cannot_run_says_why():
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="one is torch.float64"):
        multi_query_pool(x, x[0], impl="cpu")
