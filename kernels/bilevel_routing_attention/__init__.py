"""Bi-level routing attention (BiFormer, arXiv 2303.08810, section 3)."""

from collections.abc import Callable
from typing import Any

import torch

from .._library import register_operator
from ..dispatch import Capability, cast_for_autocast, choose, cpu_can_run, triton_can_run
from . import reference

__all__ = ["bilevel_routing_attention", "route_regions"]

PAD_MODES = ("mask", "zero")


def bilevel_routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    regions: int | tuple[int, int],
    topk: int,
    scale: float | None = None,
    pad_mode: str = "mask",
    routing: torch.Tensor | None = None,
    impl: str | None = None,
) -> torch.Tensor:
    """Attends from every region of a map to the tokens of the ``topk`` regions most affine to it.

    The map is cut into a grid of regions. Each region of queries is routed, by the inner product
    of mean query and mean key over all heads together, to ``topk`` regions of keys; then every
    query attends to all tokens of these regions at once (paper, equations 3 to 6, without the
    local enhancement term). Routing carries no gradient.

    Maps that the grid does not divide are padded at the right and bottom and the padding is
    cropped from the result:

    * ``"mask"``: ``regions`` regions of ``ceil(size / regions)`` tokens a side; padding is neither
      attended to nor counted in the means.
    * ``"zero"``: regions of ``floor(size / regions)`` tokens a side, possibly more than ``regions``
      of them; padded keys and values are zeros that take part in the softmax but not in the means
      (the authors' channels-first release).

    Regions that hold no token at all (maps smaller than the grid) are never attended to.

    Fused implementations read the chosen regions in place: there is no copy of their keys and
    values, and no attention matrix. The backward pass is deterministic.

    Args:
        q: Queries, (B, H, W, heads, dim).
        k: Keys, (B, H, W, heads, dim), or a pooled map (B, Hk, Wk, heads, dim) whose sides the grid
            divides; then the grid must divide H and W too.
        v: Values, (B, H, W, heads, dim_v), or pooled as ``k`` is.
        regions: Number of regions a side (not their size), as (rows, columns) or one for both.
        topk: Number of regions that a region attends to; clamped to the number of regions.
        scale: Factor of the logits; ``(heads * dim) ** -0.5`` by default, the full width, as in
            the released models.
        pad_mode: ``"mask"`` or ``"zero"``.
        routing: Region indices (B, P, topk) to use instead of the computed ones, row-major over
            the grid of P regions; a region named twice counts twice.
        impl: Implementation; see ``visattn.kernels.dispatch``.

    Returns:
        (B, H, W, heads, dim_v), in the dtype of ``v``.

    Raises:
        ValueError: If a shape, ``regions``, ``topk``, ``pad_mode`` or ``routing`` is impossible.
        RuntimeError: If ``impl`` names an implementation that cannot run.
    """
    regions = _check(q, k, regions, topk, pad_mode)
    if v.ndim != 5 or v.shape[:4] != k.shape[:4]:
        raise ValueError(
            f"v must be (B, Hk, Wk, heads, dim_v) as k is; got k {tuple(k.shape)}, "
            f"v {tuple(v.shape)}"
        )
    if routing is not None:
        _check_routing(routing, q, regions, pad_mode)
    scale = _default_scale(q, scale)
    if routing is None:
        routing = route_regions(q, k, regions, topk, scale, pad_mode, impl)
    q, k, v = cast_for_autocast(q, k, v)
    impl = choose("bilevel_routing_attention", impl, _candidates(q, k, v))
    if impl == "reference":
        return reference.bilevel_routing_attention(q, k, v, routing, regions, scale, pad_mode)
    return _operator(q, k, v, routing, regions, scale, pad_mode, impl)[0]


def route_regions(
    q: torch.Tensor,
    k: torch.Tensor,
    regions: int | tuple[int, int],
    topk: int,
    scale: float | None = None,
    pad_mode: str = "mask",
    impl: str | None = None,
) -> torch.Tensor:
    """Chooses for every region of queries the ``topk`` regions of keys it attends to.

    The arguments are those of ``bilevel_routing_attention``. Computed in at least fp32, whatever
    autocast says: a rounded logit flips a region.

    Returns:
        Region indices, (B, P, topk), the most affine first, row-major over the grid of P regions.
    """
    regions = _check(q, k, regions, topk, pad_mode)
    q, k, scale = q.detach(), k.detach(), _default_scale(q, scale)
    impl = choose("route_regions", impl, _candidates(q, k))
    if impl == "reference":
        return reference.route_regions(q, k, regions, topk, scale, pad_mode)
    return _routing_operator(q, k, regions, topk, scale, pad_mode, impl)


def _candidates(*tensors: torch.Tensor) -> dict[str, Callable[[], Capability]]:
    return {
        "triton": lambda: triton_can_run(*tensors),
        "cpu": lambda: cpu_can_run(*tensors),
    }


def _default_scale(q: torch.Tensor, scale: float | None) -> float:
    return (q.shape[-2] * q.shape[-1]) ** -0.5 if scale is None else scale


def _check(
    q: torch.Tensor, k: torch.Tensor, regions: int | tuple[int, int], topk: int, pad_mode: str
) -> tuple[int, int]:
    if q.ndim != 5 or k.ndim != 5 or q.shape[0] != k.shape[0] or q.shape[3:] != k.shape[3:]:
        raise ValueError(
            "q and k must be (B, H, W, heads, dim) and agree in B, heads and dim; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}"
        )
    rows, columns = (regions, regions) if isinstance(regions, int) else regions
    if rows < 1 or columns < 1:
        raise ValueError(f"regions must be at least 1 a side; got {regions}")
    if topk < 1:
        raise ValueError(f"topk must be at least 1; got {topk}")
    if pad_mode not in PAD_MODES:
        raise ValueError(f"pad_mode must be one of {PAD_MODES}; got {pad_mode!r}")
    if q.shape[1:3] != k.shape[1:3]:
        for name, x in (("q", q), ("k", k)):
            if x.shape[1] % rows or x.shape[2] % columns:
                raise ValueError(
                    f"with pooled keys {rows} x {columns} regions must divide the maps; "
                    f"{name} is {tuple(x.shape)}"
                )
    return rows, columns


def _check_routing(
    routing: torch.Tensor, q: torch.Tensor, regions: tuple[int, int], pad_mode: str
) -> None:
    grid = reference.region_grid(*q.shape[1:3], regions, pad_mode)
    shape = (q.shape[0], grid.rows * grid.columns)
    if routing.ndim != 3 or routing.shape[:2] != shape or routing.is_floating_point():
        raise ValueError(
            f"routing must be region indices (B, P, topk) with (B, P) = {shape}; got "
            f"{routing.dtype} of {tuple(routing.shape)}"
        )


def _implementation(impl: str) -> Any:
    if impl == "cpu":
        from . import cpu as module
    else:
        from . import triton as module
    return module


def _route(q, k, regions, topk, scale, pad_mode, impl):
    return _implementation(impl).route_regions(q, k, regions, topk, scale, pad_mode)


def _fake_route(q, k, regions, topk, scale, pad_mode, impl):
    grid = reference.region_grid(*q.shape[1:3], regions, pad_mode)
    count = grid.rows * grid.columns
    return q.new_empty(q.shape[0], count, torch.sym_min(topk, count), dtype=torch.int64)


def _forward(q, k, v, routing, regions, scale, pad_mode, impl):
    return _implementation(impl).forward(q, k, v, routing, regions, scale, pad_mode)


def _fake_forward(q, k, v, routing, regions, scale, pad_mode, impl):
    batch, height, width, heads, _ = q.shape
    lse = q.new_empty(batch, heads, height, width, dtype=torch.float32)
    return v.new_empty(batch, height, width, heads, v.shape[4]), lse


def _backward(grad, q, k, v, routing, out, lse, regions, scale, pad_mode, impl):
    return _implementation(impl).backward(
        grad, q, k, v, routing, out, lse, regions, scale, pad_mode
    )


def _fake_backward(grad, q, k, v, routing, out, lse, regions, scale, pad_mode, impl):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    q, k, v, routing, *ctx.geometry = inputs
    ctx.save_for_backward(q, k, v, routing, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad, _):
    if grad is None:
        return (None,) * 8
    return *_backward_operator(grad, *ctx.saved_tensors, *ctx.geometry), *(None,) * 5


_routing_operator = register_operator(
    "route_regions(Tensor q, Tensor k, int[] regions, int topk, float scale, str pad_mode, "
    "str impl) -> Tensor",
    _route,
    _fake_route,
)
_backward_operator = register_operator(
    "bilevel_routing_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor routing, "
    "Tensor out, Tensor lse, int[] regions, float scale, str pad_mode, str impl) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_operator = register_operator(
    "bilevel_routing_attention(Tensor q, Tensor k, Tensor v, Tensor routing, int[] regions, "
    "float scale, str pad_mode, str impl) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    _differentiate,
    _setup_context,
)
