"""The depthwise convolution against loops, torch's modules and bad input; see test_fused too."""

import pytest
import torch
from torch import nn
from torch.library import opcheck

from visattn.kernels import depthwise_conv, use_impl

ALL = ["reference", "cpu"]


def by_loops(x, weight, bias, residual):
    out = residual + bias
    height, width = x.shape[1:3]
    down, across = (side // 2 for side in weight.shape[2:])
    for row in range(height):
        for column in range(width):
            for i in range(weight.shape[2]):
                for j in range(weight.shape[3]):
                    y, z = row + i - down, column + j - across
                    if 0 <= y < height and 0 <= z < width:
                        out[:, row, column] += weight[:, 0, i, j] * x[:, y, z]
    return out


def tensors(channels=24, kernel=(3, 5), batch=2, height=4, width=7, dtype=torch.float32):
    return {
        "x": torch.randn(batch, height, width, channels, dtype=dtype),
        "weight": torch.randn(channels, 1, *kernel, dtype=dtype),
        "bias": torch.randn(channels, dtype=dtype),
        "residual": torch.randn(batch, height, width, channels, dtype=dtype),
    }


def test_reference_is_the_definition():
    inputs = tensors(dtype=torch.float64)
    torch.testing.assert_close(depthwise_conv(**inputs), by_loops(**inputs))


@pytest.mark.parametrize("impl", ALL)
def test_is_torchs_module_channels_last(impl):
    module = nn.Conv2d(32, 32, 5, padding=2, groups=32)
    x = torch.randn(2, 6, 9, 32)
    wanted = module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    out = depthwise_conv(x, module.weight, module.bias, impl=impl)
    torch.testing.assert_close(out, wanted)


def test_any_strides():
    inputs = tensors()
    wanted = depthwise_conv(**inputs, impl="cpu")
    for lay_out in (
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        lambda t: torch.stack((t, t), -2).flatten(-2)[..., : t.shape[-1]],
    ):
        laid_out = {**inputs, "x": lay_out(inputs["x"]), "residual": lay_out(inputs["residual"])}
        torch.testing.assert_close(depthwise_conv(**laid_out, impl="cpu"), wanted)


def test_only_what_is_given_has_a_gradient():
    inputs = tensors()
    for name in inputs:
        leaf = inputs[name].clone().requires_grad_()
        out = depthwise_conv(**{**inputs, name: leaf}, impl="cpu")
        out.sum().backward()
        assert leaf.grad.shape == leaf.shape


@pytest.mark.parametrize("impl", ALL)
def test_empty_batches(impl):
    inputs = tensors(batch=0)
    inputs["x"].requires_grad_()
    inputs["weight"].requires_grad_()
    out = depthwise_conv(**inputs, impl=impl)
    out.sum().backward()
    assert out.shape == inputs["x"].grad.shape == (0, 4, 7, 24)
    assert inputs["weight"].grad.eq(0).all()


def test_few_channels_run_as_torch_does():
    inputs = tensors(channels=5)
    torch.testing.assert_close(depthwise_conv(**inputs), depthwise_conv(**inputs, impl="reference"))
    with pytest.raises(RuntimeError, match="at least 16 channels; got 5"):
        depthwise_conv(**inputs, impl="cpu")


def test_runs_in_autocasts_dtype():
    with torch.autocast("cpu", torch.bfloat16), use_impl("cpu"):
        assert depthwise_conv(**tensors()).dtype == torch.bfloat16


def test_operators_are_well_formed():
    inputs = tensors()
    leaves = [t.requires_grad_() for t in inputs.values()]
    opcheck(torch.ops.visattn.depthwise_conv.default, leaves)
    x, weight, *_ = leaves
    for needs in ([True, True], [False, True], [True, False]):
        backward = (torch.randn_like(x), x.detach(), weight.detach(), needs)
        opcheck(torch.ops.visattn.depthwise_conv_backward.default, backward)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": torch.zeros(4, 7, 24)}, r"x must be \(B, H, W, C\); got \(4, 7, 24\)"),
        ({"weight": torch.zeros(24, 24, 3, 3)}, "weight must be .* with C = 24 of x"),
        ({"weight": torch.zeros(24, 1, 2, 3)}, "odd sides"),
        ({"bias": torch.zeros(23)}, r"bias must be \(24,\); got \(23,\)"),
        ({"residual": torch.zeros(2, 4, 7, 1)}, "residual must be"),
    ],
)
def test_impossible_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        depthwise_conv(**{**tensors(), **change})
