"""Every fused implementation of every op against the op's definition in float64."""

from functools import partial

import pytest
import torch
from _checks import assert_as_exact_as_reference, assert_deterministic, gradients
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from visattn.kernels import (
    AgentBias,
    agent_attention,
    bilevel_routing_attention,
    depthwise_conv,
    multi_query_pool,
    neighborhood_attention,
    roi_align,
    roi_unpool,
)

BOXES = torch.tensor([[0, 1.0, 1.0, 8.0, 9.0], [1, 2.0, 3.0, 12.0, 10.5], [1, 0.0, 0.0, 3.0, 2.0]])


def route(impl, qkv, **geometry):
    return bilevel_routing_attention(*qkv.unbind(3), impl=impl, **geometry)


def neighbor(impl, qkv, rpb, **geometry):
    return neighborhood_attention(*qkv.unbind(-3), rpb=rpb, impl=impl, **geometry)


def through_agents(impl, qkv, agents, rows, columns, query_bias):
    """Keys biased by factors over a 5 x 7 map, queries by a dense bias."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    key_bias = AgentBias(rows, columns)
    return agent_attention(q, k, v, agents, key_bias=key_bias, query_bias=query_bias, impl=impl)


def convolve(impl, packed, weight, **tensors):
    return depthwise_conv(packed[:, :, :, 1], weight, impl=impl, **tensors)


def align(impl, x, **geometry):
    return roi_align(x, BOXES.to(x.dtype), impl=impl, **geometry)


def unpool(impl, rois, **geometry):
    return roi_unpool(rois, BOXES.to(rois.dtype), (12, 14), impl=impl, **geometry)


def pool(impl, x, queries, weight):
    return multi_query_pool(x, queries, weight, impl=impl)


def tokens(*queries):
    return lambda: {
        "x": torch.randn(2, 50, 40),
        "queries": torch.randn(*queries, 40),
        "weight": torch.randn(24, 40),
    }


def packed(*sizes, heads=2, dim=16):
    return lambda: {"qkv": torch.randn(2, *sizes, 3, heads, dim)}


def packed_with_table(*sizes, window, dim=16):
    table = [2 * side - 1 for side in window]
    return lambda: {
        "qkv": torch.randn(2, *sizes, 3, 2, dim),
        "rpb": torch.randn(2, *table),
    }


def agents():
    return {
        "qkv": torch.randn(2, 35, 3, 2, 16),
        "agents": torch.randn(2, 2, 9, 16),
        "rows": torch.randn(2, 9, 5),
        "columns": torch.randn(2, 9, 7),
        "query_bias": torch.randn(2, 35, 9),
    }


def maps(height, width, channels, kernel, **others):
    """Maps that are slices, kernels, and what else is named with its shape."""
    return lambda: {
        "packed": torch.randn(2, height, width, 2, channels),
        "weight": torch.randn(channels, 1, *kernel),
        **{name: torch.randn(shape) for name, shape in others.items()},
    }


CASES = {
    "routing": (partial(route, regions=4, topk=4), packed(8, 12)),
    "routing_padded": (partial(route, regions=3, topk=2), packed(10, 8, dim=24)),
    "routing_zeros": (partial(route, regions=2, topk=4, pad_mode="zero"), packed(7, 5)),
    "neighbors_row": (partial(neighbor, kernel_size=4), packed_with_table(37, window=[4])),
    "neighbors": (partial(neighbor, kernel_size=7), packed_with_table(14, 9, window=[7, 7])),
    "neighbors_wide": (partial(neighbor, kernel_size=3), packed_with_table(4, 40, window=[3, 3])),
    "neighbors_dilated": (
        partial(neighbor, kernel_size=(3, 4), dilation=(3, 2)),
        packed_with_table(11, 13, window=[3, 4], dim=24),
    ),
    "neighbors_causal_strided": (
        partial(neighbor, kernel_size=(4, 3), stride=(2, 1), is_causal=(False, True)),
        packed_with_table(9, 20, window=[4, 3]),
    ),
    "neighbors_volume": (
        partial(neighbor, kernel_size=(3, 2, 4)),
        packed_with_table(4, 5, 6, window=[3, 2, 4], dim=8),
    ),
    "agents": (through_agents, agents),
    "conv": (convolve, maps(9, 14, 48, (3, 3), bias=(48,), residual=(2, 9, 14, 48))),
    "conv_odd": (convolve, maps(6, 11, 37, (5, 5), bias=(37,))),
    "conv_oblong": (convolve, maps(5, 12, 16, (1, 7), residual=(2, 5, 12, 16))),
    "conv_small": (convolve, maps(2, 1, 20, (5, 3), bias=(20,))),
    "pool": (pool, tokens(8)),
    "pool_by_item": (pool, tokens(2, 3)),
    "align": (
        partial(align, output_size=(5, 4), spatial_scale=0.5, sampling_ratio=2),
        lambda: {"x": torch.randn(2, 8, 9, 10)},
    ),
    "align_adaptive": (
        partial(align, output_size=3, aligned=False),
        lambda: {"x": torch.randn(2, 20, 12, 14)},
    ),
    "unpool": (unpool, lambda: {"rois": torch.randn(3, 8, 5, 5)}),
    "unpool_aligned": (partial(unpool, mode="aligned"), lambda: {"rois": torch.randn(3, 8, 5, 5)}),
}
TRITON = [n for n in CASES if n.startswith(("routing", "agents", "pool", "align", "unpool"))]
CONTESTANTS = [("cpu", name) for name in CASES] + [("triton", name) for name in TRITON]

fused = pytest.mark.parametrize(("impl", "name"), CONTESTANTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@fused
def test_is_as_exact_as_the_reference(impl, name, dtype):
    op, make = CASES[name]
    inputs = {key: value.to(dtype) for key, value in make().items()}
    assert_as_exact_as_reference(op, inputs, impl)


@pytest.mark.parametrize("name", CASES)
def test_transforms_of_functions_go_through_the_definition(name):
    op, make = CASES[name]
    inputs = make()

    def loss(impl, inputs):
        return op(impl, **inputs).sin().sum()

    found, wanted = (torch.func.grad(partial(loss, impl))(inputs) for impl in (None, "reference"))
    for key, grad in found.items():
        torch.testing.assert_close(grad, wanted[key], msg=lambda text, key=key: f"{key}: {text}")


@fused
def test_is_deterministic_for_any_number_of_threads(impl, name):
    op, make = CASES[name]
    inputs = make()
    assert_deterministic(partial(op, impl), inputs)


@pytest.mark.parametrize("name", CASES)
def test_compiles_whole(name):
    torch._dynamo.reset()
    op, make = CASES[name]
    inputs = make()
    compiled = torch.compile(partial(op, "cpu"), fullgraph=True, backend="aot_eager")
    wanted = gradients(partial(op, "cpu"), inputs)
    for key, value in gradients(compiled, inputs).items():
        torch.testing.assert_close(value, wanted[key], msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_can_be_recomputed(name):
    """Activation checkpointing, which gives saved tensors out once."""
    op, make = CASES[name]
    inputs = make()
    wanted = gradients(partial(op, "cpu"), inputs)
    again = gradients(
        lambda **leaves: checkpoint(partial(op, "cpu"), **leaves, use_reentrant=False), inputs
    )
    for key, value in again.items():
        assert torch.equal(value, wanted[key]), key


class Record(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("watch", ["mode", "profiler"])
def test_operators_are_seen_by_whoever_looks(watch):
    """Calls that skip the dispatcher skip nobody."""
    op, make = CASES["align"]
    inputs = make()
    wanted = gradients(partial(op, "cpu"), inputs)
    if watch == "mode":
        with Record() as record:
            seen = gradients(partial(op, "cpu"), inputs)
        names = record.names
    else:
        with profile() as record:
            seen = gradients(partial(op, "cpu"), inputs)
        names = {event.key for event in record.key_averages()}
    assert {"visattn::roi_align", "visattn::roi_align_backward"} <= names
    for name, value in seen.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0)


def test_subclasses_of_tensors_are_asked():
    seen = []

    class Asked(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs)

    align("cpu", torch.randn(2, 3, 12, 14).as_subclass(Asked), output_size=3)
    assert any("visattn.roi_align" in name for name in seen)
