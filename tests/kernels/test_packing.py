"""Queries, keys and values of one projection are those of ``unbind``, and so are gradients."""

import math

import pytest
import torch

from visattn.kernels import unpack


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


@pytest.mark.parametrize("used", [(0, 2), (0, 1, 2)])
def test_can_be_differentiated_twice(used):
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)

    def product(x):
        parts = unpack(x, 1)
        return math.prod(parts[i].exp() for i in used)

    assert torch.autograd.gradgradcheck(product, x)


def test_transforms_and_compilation_go_through():
    x = torch.randn(2, 3, 4)

    def loss(x):
        q, k, v = unpack(x, 1)
        return (q * k * v).sum()

    wanted = torch.func.grad(lambda x: x.prod(1).sum())(x)
    torch.testing.assert_close(torch.func.grad(loss)(x), wanted)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    compiled(leaf).backward()
    torch.testing.assert_close(leaf.grad, wanted)
