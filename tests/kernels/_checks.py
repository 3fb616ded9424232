"""What the tests of all kernels share."""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from visattn.kernels import _threads
from visattn.kernels._launch import launcher as compile_launcher
from visattn.kernels._memory import without_reuse

EPSILON = {torch.float32: 2**-23, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def gradients(
    function: Callable[..., torch.Tensor], inputs: dict[str, torch.Tensor | None]
) -> dict[str, torch.Tensor]:
    """The output of a function of named tensors, and its gradients for a fixed cotangent."""
    leaves = {
        name: x if x is None or not x.is_floating_point() else x.detach().clone().requires_grad_()
        for name, x in inputs.items()
    }
    out = function(**leaves)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    wanted = {n: x for n, x in leaves.items() if x is not None and x.requires_grad}
    grads = torch.autograd.grad(out, list(wanted.values()), cotangent.to(out.dtype))
    return {"out": out.detach(), **dict(zip(wanted, grads, strict=True))}


def assert_as_exact_as_reference(
    function: Callable[..., torch.Tensor],
    inputs: dict[str, torch.Tensor | None],
    impl: str,
    factor: float = 3.0,
) -> None:
    """Asserts that an implementation's output and gradients are near those in float64.

    Near is ``factor`` times what plain torch errs in the same dtype, and the rounding of a result,
    or of its terms, which are of order 1 for the usual random inputs.

    Args:
        function: The op, a function of ``impl`` and the named inputs.
        inputs: Tensors, or None.
        impl: Implementation.
        factor: Times the reference's error.
    """

    def run(impl: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        cast = {
            n: x if x is None or dtype is None or not x.is_floating_point() else x.to(dtype)
            for n, x in inputs.items()
        }
        return gradients(lambda **leaves: function(impl=impl, **leaves), cast)

    exact, reference = run("reference", torch.float64), run("reference")
    with poisoned_memory():
        fused = run(impl)
    for name, wanted in exact.items():
        assert fused[name].dtype == reference[name].dtype, name
        assert fused[name].shape == wanted.shape, name
        if wanted.numel() == 0:
            continue
        error = (fused[name].double() - wanted).abs().max().item()
        usual = (reference[name].double() - wanted).abs().max().item()
        rounding = 16 * EPSILON[fused[name].dtype] * max(wanted.abs().max().item(), 1.0)
        assert error <= factor * usual + rounding, (
            f"{name}: error {error:.3g}, plain torch's {usual:.3g}, rounding {rounding:.3g}"
        )


def assert_deterministic(
    function: Callable[..., torch.Tensor],
    inputs: dict[str, torch.Tensor | None],
    threads: Sequence[int] = (2, 1),
) -> None:
    """Asserts that output and gradients are the same to the bit on each number of threads."""
    before = torch.get_num_threads()
    try:
        runs = []
        for count in threads:
            torch.set_num_threads(count)
            runs.append(gradients(function, inputs))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(value, run[name]), name


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fills what ``torch.empty``, ``torch.empty_like`` and ``Tensor.new_empty`` return with NaN.

    So it does the scratch memory of ``parallel_for``, before every call of a kernel. What a kernel
    leaves unwritten, or reads before it has written it, shows.
    """

    def poison(function):
        def poisoned(*args, **kwargs):
            tensor = function(*args, **kwargs)
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            return tensor

        return poisoned

    def launcher(kernel, with_scratch):
        launch = compile_launcher(kernel, with_scratch)

        def call(parallel, threads, begin, end, chunk, scratch, size, args):
            failed = 0
            for start in range(begin, end, chunk):
                if size:
                    floats = (ctypes.c_float * (size // 4)).from_address(scratch)
                    np.ctypeslib.as_array(floats).fill(np.nan)
                stop = min(start + chunk, end)
                failed += launch(0, 1, start, stop, chunk, scratch, size, args)
            return failed

        return call

    with without_reuse(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poison(torch.empty))
        patch.setattr(torch, "empty_like", poison(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
        patch.setattr(_threads, "launcher", launcher)
        yield
