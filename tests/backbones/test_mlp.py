"""The MLP is timm's, whichever way it is computed."""

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

from visattn.backbones import _mlp
from visattn.backbones._mlp import Mlp
from visattn.kernels import use_impl
from visattn.kernels._gelu import bias_gelu, bias_gelu_gradient

SHAPE = (3, 37, 5, 16)


@pytest.fixture(autouse=True, params=[0, 2**40], ids=["recomputed", "kept"])
def small_blocks(monkeypatch, request):
    """Many blocks, the last one short, of maps that are small."""
    monkeypatch.setattr(_mlp, "HIDDEN_PER_THREAD", 1)
    monkeypatch.setattr(_mlp, "RECOMPUTE_FROM", request.param)
    return request.param


def pair(**kwargs):
    torch.manual_seed(0)
    ours, timms = Mlp(16, 48, **kwargs), timm.layers.Mlp(16, 48, **kwargs)
    timms.load_state_dict(ours.state_dict())
    return ours, timms


def run(mlp, x):
    x = x.clone().requires_grad_()
    out = mlp(x)
    wanted = [x, *(p for p in mlp.parameters() if p.requires_grad)]
    return out, *torch.autograd.grad(out.sin().sum(), wanted)


@pytest.mark.parametrize("bias", [True, False, (True, False)])
@pytest.mark.parametrize("shape", [SHAPE, (300, 16), (0, 16)])
def test_outputs_and_gradients_are_timms(bias, shape):
    ours, timms = pair(bias=bias)
    x = torch.randn(shape)
    for a, b in zip(run(ours, x), run(timms, x), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), timms(x))


@pytest.mark.parametrize("frozen", [("fc1",), ("fc2",), ("fc1", "fc2")], ids="-".join)
def test_frozen_layers_get_no_gradient(frozen):
    mlps = pair()
    for mlp in mlps:
        for name in frozen:
            mlp.get_submodule(name).requires_grad_(False)
    x = torch.randn(SHAPE)
    for a, b in zip(*(run(mlp, x) for mlp in mlps), strict=True):
        torch.testing.assert_close(a, b)


def test_takes_any_strides():
    ours, timms = pair()
    x = torch.randn(3, 16, 37, 5).permute(0, 2, 3, 1)
    for a, b in zip(run(ours, x), run(timms, x), strict=True):
        torch.testing.assert_close(a, b)


def test_hidden_features_are_kept_once_or_not_at_all(small_blocks):
    ours, timms = pair()
    x = torch.randn(SHAPE, requires_grad=True)
    kept = {}
    for name, mlp in (("ours", ours), ("timms", timms)):
        sizes = kept[name] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(tuple(t.shape)) or t, lambda t: t
        ):
            mlp(x)
    tokens = x.shape[:-1].numel()
    count = {k: sum(torch.Size(s).numel() == tokens * 48 for s in v) for k, v in kept.items()}
    assert count == {"ours": 1 if small_blocks else 0, "timms": 2}


def test_definitions_can_be_differentiated_twice():
    ours, _ = pair()
    x = torch.randn(SHAPE, requires_grad=True)
    with use_impl("reference"):
        (slope,) = torch.autograd.grad(ours(x).sin().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_is_as_exact_as_single_precision_allows():
    """Also far from 0, where GELU is a small difference."""
    hidden = torch.linspace(-9, 9, 3 * 2**12).view(-1, 48)
    bias, grad = torch.zeros(48), torch.ones_like(hidden)
    exact = hidden.double().requires_grad_()
    F.gelu(exact).sum().backward()
    out, again = torch.empty_like(hidden), torch.empty_like(hidden)
    bias_gelu(hidden, bias, out)
    sums = bias_gelu_gradient(hidden, bias, grad, again)
    assert torch.equal(out, again)
    assert (out - F.gelu(exact)).abs().max() < 1e-6
    assert (grad - exact.grad).abs().max() < 1e-6
    torch.testing.assert_close(sums, exact.grad.sum(0).float())


def test_other_numbers_of_hidden_features_are_timms():
    ours, timms = Mlp(16, 40), timm.layers.Mlp(16, 40)
    timms.load_state_dict(ours.state_dict())
    for a, b in zip(*(run(mlp, torch.ones(SHAPE)) for mlp in (ours, timms)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layer", ["fc1", "act", "fc2"])
def test_hooks_on_its_layers_are_called(layer):
    ours, _ = pair()
    called = []
    ours.get_submodule(layer).register_forward_hook(lambda *_: called.append(layer))
    with torch.no_grad():
        ours(torch.randn(SHAPE))
    assert called == [layer]


def test_replaced_layers_are_used():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    ours, timms = pair()
    for mlp in (ours, timms):
        doubled = Doubled(48, 16)
        doubled.load_state_dict(mlp.fc2.state_dict())
        mlp.fc2 = doubled
    x = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), timms(x))


@pytest.mark.parametrize("act_layer", [nn.ReLU, nn.SiLU, timm.layers.GELU])
def test_other_activations_are_used(act_layer):
    ours, timms = pair(act_layer=act_layer)
    x = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), timms(x))


def test_dropout_is_applied_in_training():
    ours, _ = pair(drop=0.5)
    x = torch.randn(SHAPE)
    assert (ours.train()(x) == 0).float().mean() > 0.3
    assert not (ours.eval()(x) == 0).any()


def test_autocast_is_obeyed():
    ours, _ = pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.randn(SHAPE)).dtype == torch.bfloat16


def test_gradients_of_samples_are_timms():
    grads = []
    for mlp in pair():
        parameters = dict(mlp.named_parameters())

        def loss(parameters, x, mlp=mlp):
            return torch.func.functional_call(mlp, parameters, x).sin().sum()

        torch.manual_seed(1)
        of_samples = torch.func.vmap(torch.func.grad(loss), (None, 0))
        grads.append(of_samples(parameters, torch.randn(SHAPE)))
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name])


def test_keeps_float64():
    ours, timms = pair()
    x = torch.randn(SHAPE, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(x), timms.double()(x))
