"""Efficient local attention against its definition."""

import pytest
import torch

from visattn.kernels import efficient_local_attention


def by_loops(x, conv, weight, bias, norm_groups, eps=1e-5):
    """Strip by strip, tap by tap, group by group."""
    batch, channels, _, _ = x.shape
    group, taps = conv.shape[1:]

    def gate(strip):
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
        return (out * weight[:, None] + bias[:, None]).sigmoid()

    return x * gate(x.mean(3))[..., None] * gate(x.mean(2))[:, :, None]


def make(shape, group, taps, dtype=torch.float32):
    channels = shape[1]
    sizes = (shape, (channels, group, taps), (channels,), (channels,))
    return [torch.randn(size, dtype=dtype) for size in sizes]


SHAPES = [
    ((2, 16, 5, 7), 1, 5),
    ((1, 32, 9, 13), 1, 7),
    ((2, 64, 20, 7), 8, 5),
    ((0, 16, 3, 3), 1, 5),
]


@pytest.mark.parametrize(("shape", "group", "taps"), SHAPES)
def test_reference_is_the_definition(shape, group, taps):
    tensors = make(shape, group, taps, torch.float64)
    torch.testing.assert_close(efficient_local_attention(*tensors, 8), by_loops(*tensors, 8))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "group", "taps"), SHAPES)
def test_fused_inference_agrees(shape, group, taps, channels_last):
    x, *parameters = make(shape, group, taps)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        out = efficient_local_attention(x, *parameters, 8, impl="cpu")
        torch.testing.assert_close(
            out, efficient_local_attention(x, *parameters, 8, impl="reference")
        )
        assert out.stride() == x.stride()


def test_gradients_are_those_of_the_definition():
    tensors = [t.requires_grad_() for t in make((2, 16, 5, 7), 1, 5)]
    efficient_local_attention(*tensors, 8).sum().backward()
    assert all(t.grad.isfinite().all() and t.grad.any() for t in tensors)
    with pytest.raises(RuntimeError, match="no gradient yet"):
        efficient_local_attention(*tensors, 8, impl="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_groups": 7}, "norm_groups must divide the 16 channels"),
        ({"conv_weight": torch.ones(16, 1, 4)}, "must be odd"),
        ({"x": torch.ones(16, 3, 3)}, r"x must be \(B, C, H, W\)"),
    ],
)
def test_bad_input(change, message):
    x, conv, weight, bias = make((1, 16, 3, 3), 1, 5)
    arguments = {"x": x, "conv_weight": conv, "norm_weight": weight, "norm_bias": bias}
    with pytest.raises(ValueError, match=message):
        efficient_local_attention(**{**arguments, "norm_groups": 4, **change})
