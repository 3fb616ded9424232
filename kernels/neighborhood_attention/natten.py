"""Neighborhood attention by NATTEN's CUDA kernels, where it is installed with them."""

from importlib.util import find_spec

import torch

from ..dispatch import Capability
from . import reference

_has_natten = find_spec("natten") is not None


def can_run(
    q: torch.Tensor,
    rpb: torch.Tensor | None,
    kernel: tuple[int, ...],
) -> Capability:
    """Whether NATTEN takes these tensors and gives what it should."""
    if not _has_natten:
        return False, "natten is not installed: see https://natten.org"
    if q.device.type != "cuda":
        return False, f"it takes tensors on cuda, and these are on {q.device.type}"
    if rpb is not None:
        return False, "NATTEN has no relative position bias since 0.20"
    if q.dtype == torch.float64:
        return False, "it takes float32, bfloat16 and float16, and these are torch.float64"
    if min(kernel) < 2:
        return False, f"NATTEN takes windows of at least 2 along each axis, and one is {kernel}"
    if q.shape[-1] % 8 or q.numel() == 0:
        return False, f"NATTEN takes filled tensors of head dims divisible by 8; got {q.shape}"
    return _agrees(q.ndim - 3, q.shape[-1], q.dtype, q.device.index)


def forward(q, k, v, additional_keys, additional_values, kernel, dilation, stride, causal, scale):
    """See ``visattn.kernels.neighborhood_attention``; differentiable."""
    from natten import functional

    op = getattr(functional, f"na{len(kernel)}d")
    return op(
        q,
        k,
        v,
        kernel_size=tuple(kernel),
        stride=tuple(stride),
        dilation=tuple(dilation),
        is_causal=tuple(causal),
        scale=scale,
        additional_keys=additional_keys,
        additional_values=additional_values,
    )


_verdicts: dict[tuple[int, int, torch.dtype, int | None], Capability] = {}


@torch.compiler.assume_constant_result
def _agrees(rank: int, dim: int, dtype: torch.dtype, device: int | None) -> Capability:
    """Compares NATTEN with the definition, output and gradients, once for each kind of tensor."""
    key = (rank, dim, dtype, device)
    if key not in _verdicts:
        _verdicts[key] = _compare(rank, dim, dtype, torch.device("cuda", device))
    return _verdicts[key]


def _compare(rank: int, dim: int, dtype: torch.dtype, device: torch.device) -> Capability:
    # Even and odd windows, stride, dilation, and a causal last axis.
    geometry = (
        (3, 4, 3)[-rank:],
        (1, 1, 2)[-rank:],
        (1, 2, 1)[-rank:],
        (False, False, True)[-rank:],
        dim**-0.5,
    )
    shape = (1, *(6, 7, 8)[-rank:], 2, dim)
    generator = torch.Generator().manual_seed(0)
    *exact, weight = torch.randn(4, *shape, generator=generator, dtype=torch.float64).to(device)
    tensors = [x.to(dtype).requires_grad_() for x in exact]
    exact = [x.detach().double().requires_grad_() for x in tensors]
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            out = forward(*tensors, None, None, *geometry)
            grads = torch.autograd.grad((out * weight.to(dtype)).sum(), tensors)
            expected = reference.neighborhood_attention(*exact, None, None, None, *geometry)
            weight = weight.to(dtype).double()
            expected_grads = torch.autograd.grad((expected * weight).sum(), exact)
    except (RuntimeError, ValueError) as error:
        return False, f"NATTEN failed on a small input: {error}"
    # NATTEN multiplies float32 in tf32, whose digits are those of float16.
    tolerance = 32 * torch.finfo(torch.bfloat16 if dtype == torch.bfloat16 else torch.float16).eps
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        if not (actual.double() - wanted).abs().max() <= tolerance * wanted.abs().max():
            return False, "NATTEN gave wrong results on a small input"
    return True, ""
