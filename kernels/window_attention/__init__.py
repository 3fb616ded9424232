"""Attention within windows of a map, optionally shifted (Swin Transformer, arXiv 2103.14030)."""

from typing import Any

import torch

from .._library import register_operator
from .._packing import empty_parts
from ..dispatch import cast_for_autocast, choose, cpu_can_run, triton_can_run
from . import reference

__all__ = ["window_attention"]


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    bias: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
    shift_small_maps: bool = True,
) -> torch.Tensor:
    """Attends within non-overlapping windows of a map.

    One op from map to map: cyclic shift, partition, bias, mask of the shifted windows, softmax,
    and their inverses (Swin, section 3.2, figure 4). The mask follows from positions and is never
    stored. Windows that reach over the right or bottom border of a map that they do not divide
    have fewer tokens: nothing is padded, and nothing attends beyond the border.

    The backward pass is deterministic.

    Args:
        q: Queries, (B, H, W, heads, dim).
        k: Keys, (B, H, W, heads, dim).
        v: Values, (B, H, W, heads, dim).
        window_size: Tokens of a window, as (height, width) or one for both.
        shift: Tokens that windows are displaced by, down and right; less than the window. Tokens
            that were brought together from opposite borders do not attend to each other.
        bias: Added to the logits, (heads, tokens, tokens) for row-major tokens of a window.
        scale: Factor of the logits; ``dim ** -0.5`` by default.
        impl: Implementation; see ``visattn.kernels.dispatch``.
        shift_small_maps: Whether windows are displaced, too, where a side of the map is no longer
            than that of a window.

    Returns:
        (B, H, W, heads, dim), in the dtype of ``v``.

    Raises:
        ValueError: If a shape, ``window_size`` or ``shift`` is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    window, shift = _pair(window_size), _pair(shift)
    _check(q, k, v, window, shift, bias)
    q, k, v = cast_for_autocast(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    impl = choose(
        "window_attention",
        impl,
        {
            "triton": lambda: triton_can_run(q, k, v, bias),
            "cpu": lambda: cpu_can_run(q, k, v, bias),
        },
    )
    if torch.compiler.is_exporting() and impl == "reference":
        return reference.window_attention_of_any_size(
            q, k, v, window, shift, bias, scale, shift_small_maps
        )
    if not shift_small_maps and any(
        side <= length for side, length in zip(q.shape[1:3], window, strict=True)
    ):
        shift = 0, 0
    if impl == "reference":
        return reference.window_attention(q, k, v, window, shift, bias, scale)
    return _operator(q, k, v, bias, window, shift, scale, impl)[0]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: tuple[int, int],
    shift: tuple[int, int],
    bias: torch.Tensor | None,
) -> None:
    if q.ndim != 5 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            "q, k and v must be (B, H, W, heads, dim), all the same; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    for size, offset in zip(window, shift, strict=True):
        if size < 1:
            raise ValueError(f"window_size must be at least 1; got {window}")
        if not 0 <= offset < size:
            raise ValueError(f"shift must be from 0 to below window_size {window}; got {shift}")
    area = window[0] * window[1]
    if bias is not None and bias.shape != (q.shape[3], area, area):
        raise ValueError(
            f"bias must be (heads, tokens, tokens) = {(q.shape[3], area, area)}; "
            f"got {tuple(bias.shape)}"
        )


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _forward(q, k, v, bias, window, shift, scale, impl):
    return _implementation(impl).forward(q, k, v, bias, window, shift, scale)


def _fake_forward(q, k, v, bias, window, shift, scale, impl):
    batch, height, width, heads, _ = q.shape
    lse = q.new_empty(batch, heads, height, width, dtype=torch.float32)
    return v.new_empty(v.shape), lse


def _backward(grad, q, k, v, bias, out, lse, window, shift, scale, impl):
    return _implementation(impl).backward(grad, q, k, v, bias, out, lse, window, shift, scale)


def _backward_directly(*args):
    """``_backward`` with gradients of parts of one tensor as parts of one, which no fake tells."""
    *args, impl = args
    options = {"allocate": empty_parts} if impl == "cpu" else {}
    return _implementation(impl).backward(*args, **options)


def _fake_backward(grad, q, k, v, bias, out, lse, window, shift, scale, impl):
    grads = tuple(x.new_empty(x.shape) for x in (q, k, v))
    return (*grads, q.new_empty(0) if bias is None else bias.new_empty(bias.shape))


def _setup_context(ctx, inputs, output):
    q, k, v, bias, *ctx.geometry = inputs
    ctx.save_for_backward(q, k, v, bias, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, _):
    if grad is None:
        return (None,) * 8
    q, k, v, bias, out, lse = ctx.saved_tensors
    dq, dk, dv, dbias = _backward_operator(grad, q, k, v, bias, out, lse, *ctx.geometry)
    return dq, dk, dv, None if bias is None else dbias, None, None, None, None


_backward_operator = register_operator(
    "window_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? bias, "
    "Tensor out, Tensor lse, int[] window, int[] shift, float scale, str impl) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    direct=_backward_directly,
)
_operator = register_operator(
    "window_attention(Tensor q, Tensor k, Tensor v, Tensor? bias, int[] window, int[] shift, "
    "float scale, str impl) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
