"""Attention to the neighborhood of each position (NAT, arXiv 2204.07143; DiNAT, 2209.15001)."""

import operator
from typing import Any

import torch

from .._library import register_operator
from .._packing import empty_parts
from ..dispatch import cast_for_autocast, choose, cpu_can_run, triton_can_run
from . import natten, reference

__all__ = ["neighborhood_attention"]


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kernel_size: int | tuple[int, ...],
    dilation: int | tuple[int, ...] = 1,
    stride: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    rpb: torch.Tensor | None = None,
    scale: float | None = None,
    additional_keys: torch.Tensor | None = None,
    additional_values: torch.Tensor | None = None,
    clip: bool = False,
    impl: str | None = None,
) -> torch.Tensor:
    """Attends from each position of a sequence, map or volume to a window around it.

    The window is centred on the query where it can be, and moved inwards near a border: it never
    leaves the map, nothing is padded, and every query sees ``kernel_size`` positions along each
    axis (NAT, section 3.1). With dilation, positions that agree modulo ``dilation`` along each axis
    are a map of their own. An even window reaches one position further to the left than to the
    right. With a stride, that many queries that follow each other share the window of the one in
    their middle; ``stride == kernel_size`` is attention within blocks. Along a causal axis the
    window ends with the query, and is cut at the border. All of it is as NATTEN 0.20 and newer
    define it, along each axis by itself.

    The backward pass is deterministic, but that of NATTEN, which is so under
    ``torch.use_deterministic_algorithms``.

    Args:
        q: Queries, (B, *spatial, heads, dim), with one, two or three spatial axes.
        k: Keys, (B, *spatial, heads, dim).
        v: Values, (B, *spatial, heads, dim).
        kernel_size: Positions that a window has, along each axis or along all.
        dilation: Distance between neighboring positions of a window.
        stride: Queries that share a window, at most ``kernel_size``.
        is_causal: Whether no query sees positions after it.
        rpb: Relative position bias, (heads, *(2 * kernel_size - 1)), added to the logits: at index
            ``(key - query) / dilation + kernel_size - 1`` along each axis.
        scale: Factor of the logits; ``dim ** -0.5`` by default.
        additional_keys: Keys that every query sees besides its window, (B, L, heads, dim).
        additional_values: Their values, (B, L, heads, dim).
        clip: Whether a window larger than the map is made as large as fits (with the central part
            of ``rpb``) instead of refused.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        (B, *spatial, heads, dim), in the dtype of ``v``.

    Raises:
        ValueError: If a shape or an argument is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    rank = q.ndim - 3
    if rank not in (1, 2, 3) or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(
            "q, k and v must be (B, *spatial, heads, dim) with one to three spatial axes, all the "
            f"same; got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    kernel = _per_axis("kernel_size", kernel_size, rank)
    dilation = _per_axis("dilation", dilation, rank)
    stride = _per_axis("stride", stride, rank)
    causal = _per_axis("is_causal", is_causal, rank)
    _check(q, k, v, rpb, additional_keys, additional_values, kernel, dilation, stride)
    whole = kernel
    kernel = _fit(q.shape[1:-2], kernel, dilation, clip)
    stride = tuple(min(sides) for sides in zip(stride, kernel, strict=True))
    if rpb is not None:
        for axis, (large, small) in enumerate(zip(whole, kernel, strict=True), 1):
            rpb = rpb.narrow(axis, large - small, 2 * small - 1)

    q, k, v = cast_for_autocast(q, k, v)
    if additional_keys is not None:
        additional_keys, additional_values = cast_for_autocast(additional_keys, additional_values)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tensors = (q, k, v, rpb, additional_keys, additional_values)
    geometry = (kernel, dilation, stride, causal, scale)
    impl = choose(
        "neighborhood_attention",
        impl,
        {
            "natten": lambda: natten.can_run(q, rpb, kernel),
            "triton": lambda: triton_can_run(*tensors),
            "cpu": lambda: cpu_can_run(*tensors),
        },
    )
    if impl == "reference":
        return reference.neighborhood_attention(*tensors, *geometry)
    if impl == "natten":
        return natten.forward(q, k, v, additional_keys, additional_values, *geometry)
    return _operator(*tensors, *geometry, impl)[0]


def _per_axis(name: str, value: Any, rank: int) -> tuple:
    if isinstance(value, (tuple, list)):
        if len(value) != rank:
            raise ValueError(
                f"{name} must have one value, or one for each of the {rank} spatial axes; "
                f"got {tuple(value)}"
            )
    else:
        value = (value,) * rank
    if name == "is_causal":
        return tuple(bool(x) for x in value)
    try:
        value = tuple(operator.index(x) for x in value)
    except TypeError:
        raise ValueError(f"{name} must be made of integers; got {value}") from None
    if min(value) < 1:
        raise ValueError(f"{name} must be at least 1 along each axis; got {value}")
    return value


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rpb: torch.Tensor | None,
    additional_keys: torch.Tensor | None,
    additional_values: torch.Tensor | None,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    stride: tuple[int, ...],
) -> None:
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, k and v must have one dtype; got {q.dtype}, {k.dtype} and {v.dtype}: cast them"
        )
    if any(s > size for s, size in zip(stride, kernel, strict=True)):
        raise ValueError(f"stride must be at most kernel_size {kernel}; got {stride}")
    batch, heads, dim = q.shape[0], *q.shape[-2:]
    table = (heads, *(2 * size - 1 for size in kernel))
    if rpb is not None and rpb.shape != table:
        raise ValueError(
            f"rpb must be (heads, *(2 * kernel_size - 1)) = {table}; got {tuple(rpb.shape)}"
        )
    if (additional_keys is None) != (additional_values is None):
        raise ValueError("additional_keys and additional_values must be given together")
    if additional_keys is not None:
        if not additional_keys.dtype == additional_values.dtype == q.dtype:
            raise ValueError(
                f"additional_keys and additional_values must have the dtype of q, {q.dtype}; got "
                f"{additional_keys.dtype} and {additional_values.dtype}: cast them"
            )
        shape = additional_keys.shape
        if shape != additional_values.shape or shape != (batch, shape[1], heads, dim):
            raise ValueError(
                "additional_keys and additional_values must be (B, L, heads, dim) with the B, "
                f"heads and dim of q {tuple(q.shape)}; got {tuple(shape)} and "
                f"{tuple(additional_values.shape)}"
            )


def _fit(
    size: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...], clip: bool
) -> tuple[int, ...]:
    """The window, or with ``clip`` as much of it as the map has positions of one dilation."""
    fitting = []
    for length, window, step in zip(size, kernel, dilation, strict=True):
        if length < window * step:
            if not clip:
                raise ValueError(
                    f"kernel_size {kernel} times dilation {dilation} is larger than the map "
                    f"{tuple(size)}; take smaller ones, or clip=True"
                )
            window = max(length // step, 1)
        fitting.append(window)
    return tuple(fitting)


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _forward(q, k, v, rpb, extra_k, extra_v, kernel, dilation, stride, causal, scale, impl):
    return _implementation(impl).forward(
        q, k, v, rpb, extra_k, extra_v, kernel, dilation, stride, causal, scale
    )


def _fake_forward(q, k, v, rpb, extra_k, extra_v, kernel, dilation, stride, causal, scale, impl):
    batch, *spatial, heads, _ = q.shape
    return v.new_empty(v.shape), q.new_empty(batch, heads, *spatial, dtype=torch.float32)


def _backward(
    grad, q, k, v, rpb, extra_k, extra_v, out, lse, kernel, dilation, stride, causal, scale, impl
):
    return _implementation(impl).backward(
        grad, q, k, v, rpb, extra_k, extra_v, out, lse, kernel, dilation, stride, causal, scale
    )


def _backward_directly(*args):
    """``_backward`` with gradients of parts of one tensor as parts of one, which no fake tells."""
    *args, impl = args
    options = {"allocate": empty_parts} if impl == "cpu" else {}
    return _implementation(impl).backward(*args, **options)


def _fake_backward(
    grad, q, k, v, rpb, extra_k, extra_v, out, lse, kernel, dilation, stride, causal, scale, impl
):
    return tuple(
        q.new_empty(0) if x is None else x.new_empty(x.shape)
        for x in (q, k, v, rpb, extra_k, extra_v)
    )


def _setup_context(ctx, inputs, output):
    ctx.geometry = inputs[6:]
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, _):
    if grad is None:
        return (None,) * 12
    saved = ctx.saved_tensors
    grads = _backward_operator(grad, *saved, *ctx.geometry)
    return *(None if x is None else g for x, g in zip(saved[:6], grads, strict=True)), *(None,) * 6


_backward_operator = register_operator(
    "neighborhood_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? rpb, "
    "Tensor? extra_k, Tensor? extra_v, Tensor out, Tensor lse, int[] kernel, int[] dilation, "
    "int[] stride, bool[] causal, float scale, str impl) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
    direct=_backward_directly,
)
_operator = register_operator(
    "neighborhood_attention(Tensor q, Tensor k, Tensor v, Tensor? rpb, Tensor? extra_k, "
    "Tensor? extra_v, int[] kernel, int[] dilation, int[] stride, bool[] causal, float scale, "
    "str impl) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
