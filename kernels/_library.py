"""Registration of fused operators with torch, in one place and one way.

Registered operators are opaque to ``torch.compile`` and ``torch.export``, which see their fake
implementation instead; the public functions of each op's ``__init__`` call them.
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["implementations", "register_operator"]

NAMESPACE = "visattn"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

implementations: dict[str, Callable[..., Any]] = {}
"""What runs of each operator, by qualified name."""


def register_operator(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Registers ``visattn::<schema>`` for all devices.

    Args:
        schema: torch's schema, such as ``"add(Tensor x, Tensor y) -> Tensor"``.
        implementation: What runs; never called for gradients.
        fake: Shapes, strides and dtypes of the results, as ``torch.library.register_fake`` wants.
        backward: Gradient, as ``torch.library.register_autograd`` wants, itself made of operators.
            Without one, differentiating raises: a gradient's own gradient needs the reference.
        setup_context: Saves what ``backward`` needs, as ``torch.library.register_autograd`` wants.

    Returns:
        The operator.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    implementations[qualified] = implementation
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    _register_autograd(operator, backward or _refuse(name), setup_context)
    return operator


def _register_autograd(
    operator: torch._ops.OpOverload,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None,
) -> None:
    """What ``torch.library.register_autograd`` does, where all arguments are always given.

    It looks for those that are not, which can take longer than the operator.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    def run(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    def differentiable(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(x, torch.Tensor) and x.requires_grad for x in args
        ):
            return function.apply(*args)
        return run(*args)

    name = operator.name().partition("::")[2]
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(name, (torch.autograd.Function,), members)
    _library.impl(name, differentiable, "Autograd")


def _refuse(name: str) -> Callable[..., Any]:
    def backward(*args: Any) -> Any:
        raise RuntimeError(
            f"{name} has no gradient of its own; for second derivatives run the op with "
            'impl="reference", or under visattn.kernels.use_impl("reference")'
        )

    return backward
