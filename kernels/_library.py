"""Registration of fused operators with torch, in one place and one way.

Registered operators are opaque to ``torch.compile`` and ``torch.export``, which see their fake
implementation instead; the public functions of each op's ``__init__`` call them. Where nothing is
there to see them, calls do without torch's dispatcher: small maps are done in less time than it
takes to go through it and back to Python.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["implementations", "register_operator"]

NAMESPACE = "visattn"
PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Tensors that are no more than that."""
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

implementations: dict[str, Callable[..., Any]] = {}
"""What runs of each operator, by qualified name."""


def register_operator(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    direct: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Registers ``visattn::<schema>`` for all devices.

    Args:
        schema: torch's schema, such as ``"add(Tensor x, Tensor y) -> Tensor"``.
        implementation: What runs; never called for gradients.
        fake: Shapes, strides and dtypes of the results, as ``torch.library.register_fake`` wants.
        backward: Gradient, as ``torch.library.register_autograd`` wants, itself made of operators.
            Without one, differentiating raises: a gradient's own gradient needs the reference.
        setup_context: Saves what ``backward`` needs, as ``torch.library.register_autograd`` wants.
        direct: What runs instead of ``implementation`` where nothing looks on, and results may
            have other strides than ``fake`` says, or share memory.

    Returns:
        The operator, as a function that goes through the dispatcher only where it must.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    implementations[qualified] = implementation
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    gradient = backward or _refuse(name), setup_context
    _library.impl(name, _differentiable(name, below_autograd, *gradient), "Autograd")
    directly = _differentiable(name, direct or implementation, *gradient)

    def call(*args: Any) -> Any:
        # Asked first, for compilers know the answer and see no more of this.
        if torch.compiler.is_compiling() or not _nothing_intercepts(args):
            return operator(*args)
        return directly(*args)

    return call


def _differentiable(
    name: str,
    run: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
) -> Callable[..., Any]:
    """What ``torch.library.register_autograd`` makes of ``run``, with all arguments always given.

    That looks for those that are not, which can take longer than the operator.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    def differentiable(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(x, torch.Tensor) and x.requires_grad for x in args
        ):
            return function.apply(*args)
        return run(*args)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(name, (torch.autograd.Function,), members)
    return differentiable


def _nothing_intercepts(args: tuple[Any, ...]) -> bool:
    """Whether no mode, transform, trace, profiler or kind of tensor asks for the operator."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
        and not torch._C._autograd._profiler_enabled()
        and all(type(x) in PLAIN for x in args if isinstance(x, torch.Tensor))
    )


def _refuse(name: str) -> Callable[..., Any]:
    def backward(*args: Any) -> Any:
        raise RuntimeError(
            f"{name} has no gradient of its own; for second derivatives run the op with "
            'impl="reference", or under visattn.kernels.use_impl("reference")'
        )

    return backward
