"""Queries, keys and values of one projection are those of ``unbind``, and so are gradients."""

import math

import pytest
import torch

from visattn.kernels import agent_attention, neighborhood_attention, unpack, window_attention
from visattn.kernels._packing import empty_parts


def _by_agents(q, k, v, impl):
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    agents = torch.linspace(-1, 1, 6 * q.shape[3]).reshape(6, -1).expand(*q.shape[:2], -1, -1)
    return agent_attention(q, k, v, agents, impl=impl)


LAYERS = {
    "agent": _by_agents,
    "window": lambda q, k, v, impl: window_attention(q, k, v, 4, impl=impl),
    "neighborhood": lambda q, k, v, impl: neighborhood_attention(q, k, v, 3, impl=impl),
}


@pytest.mark.parametrize("unused", [None, 0, 1, 2])
@pytest.mark.parametrize("dim", [1, 3, -2])
def test_parts_and_gradients_are_those_of_unbind(dim, unused):
    x = torch.randn(2, 3, 5, 3, 4, requires_grad=True)
    weight = torch.randn(3, *x.select(dim, 0).shape)
    results = []
    for split in (unpack, torch.Tensor.unbind):
        parts = split(x, dim)
        used = [i for i in range(3) if i != unused]
        (grad,) = torch.autograd.grad(sum((parts[i].sin() * weight[i]).sum() for i in used), x)
        results.append((*parts, grad))
    for ours, wanted in zip(*results, strict=True):
        assert torch.equal(ours, wanted)


@pytest.mark.parametrize("again", [(2,), (2, 0), (1, 1)])
@pytest.mark.parametrize("unused", [(), (0,), (2, 3), (3,)])
def test_parts_that_are_used_again_get_both_gradients(again, unused):
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    own = x.unbind(2)
    results = []
    for parts in (unpack(x, 2, again), (*own, *(own[i] for i in again))):
        used = [part for i, part in enumerate(parts) if i not in unused]
        loss = sum((part.sin() * i).sum() for i, part in enumerate(used, 1))
        results.append((*parts, *torch.autograd.grad(loss, x)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("used", [(0, 2), (0, 1, 2), (0, 1, 2, 3)])
def test_can_be_differentiated_twice(used):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def product(x):
        parts = unpack(x, 1, again=(1,))
        return math.prod(parts[i].exp() for i in used)

    assert torch.autograd.gradgradcheck(product, x)


def test_transforms_and_compilation_go_through():
    x = torch.randn(2, 3, 4)

    def loss(x):
        q, k, v, again = unpack(x, 1, again=(0,))
        return (q * k * v * again).sum()

    wanted = torch.func.grad(lambda x: (x[:, 0] * x.prod(1)).sum())(x)
    torch.testing.assert_close(torch.func.grad(loss)(x), wanted)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    compiled(leaf).backward()
    torch.testing.assert_close(leaf.grad, wanted)


@pytest.mark.parametrize("dim", [0, 3, -1])
def test_memory_for_the_gradients_of_parts_is_that_of_parts(dim):
    q, k, v = torch.randn(3, 5, 4, 3, 3).unbind(dim)
    parts = empty_parts(q, k, v)
    (storage,) = {part.untyped_storage().data_ptr() for part in parts}
    for part, x in zip(parts, (q, k, v), strict=True):
        assert part.stride() == x.stride()
        assert part.data_ptr() - storage == x.data_ptr() - q.data_ptr()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.clone().unbind(0)[:2] + x.unbind(0)[2:],
        lambda x: x[:, 1:].unbind(0),
        lambda x: x.unbind(0)[::-1],
        lambda x: (x[0], x[1], x[0]),
        lambda x: (x[0], x[0], x[0]),
        lambda x: (x[0], x[1], x[2].mT),
    ],
    ids=["two_tensors", "slices", "backwards", "again", "the_same", "other_strides"],
)
def test_memory_for_the_gradients_of_others_is_their_own(make):
    tensors = make(torch.randn(3, 4, 4))
    results = empty_parts(*tensors)
    assert len({x.untyped_storage().data_ptr() for x in results}) == 3
    for x, y in zip(results, tensors, strict=True):
        assert x.is_contiguous() and x.shape == y.shape


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (1, 2, 0, 3), (2, 0, 1, 3)])
def test_memory_for_the_gradients_of_others_is_in_their_order(order):
    q, k = (torch.randn(2, 5, 3, 4).permute(order) for _ in range(2))
    for x in empty_parts(q, k):
        assert x.shape == q.shape and x.stride() == q.stride()


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_of_a_second_use_leave_those_of_the_first(layer):
    x = torch.randn(2, 8, 8, 3, 2, 16, requires_grad=True)
    parts = unpack(x, 3, again=(2,))
    out = LAYERS[layer](*parts[:3], impl="cpu").sin().sum() + parts[3].sin().sum()
    *kept, total = torch.autograd.grad(out, [*parts[:3], x])
    kept[2] = kept[2] + parts[3].cos()
    torch.testing.assert_close(total, torch.stack(kept, 3))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_that_need_no_copy(layer):
    """Those of a layer that has written them as parts of one tensor, which none then changes."""
    x = torch.randn(2, 8, 8, 3, 2, 16, requires_grad=True)
    (wanted,) = torch.autograd.grad(LAYERS[layer](*x.unbind(3), impl="reference").sin().sum(), x)
    q, k, v = unpack(x, 3)
    q.retain_grad()
    out = LAYERS[layer](q, k, v, impl="cpu")
    for times in (1, 2):
        out.sin().sum().backward(retain_graph=True)
        torch.testing.assert_close(x.grad, times * wanted)
    kept = q.grad.clone()
    x.grad.zero_()
    assert torch.equal(q.grad, kept)
    torch.testing.assert_close(kept, 2 * wanted[:, :, :, 0])
