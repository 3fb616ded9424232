"""Bi-level routing attention (BiFormer, arXiv 2303.08810, section 3)."""

import torch

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
            the grid of P regions.

    Returns:
        (B, H, W, heads, dim_v), in the dtype of ``v``.

    Raises:
        ValueError: If a shape, ``regions``, ``topk`` or ``pad_mode`` is impossible.
    """
    regions = _check(q, k, regions, topk, pad_mode)
    if v.ndim != 5 or v.shape[:4] != k.shape[:4]:
        raise ValueError(
            f"v must be (B, Hk, Wk, heads, dim_v) as k is; got k {tuple(k.shape)}, "
            f"v {tuple(v.shape)}"
        )
    return reference.bilevel_routing_attention(
        q, k, v, regions, topk, _default_scale(q, scale), pad_mode, routing
    )


def route_regions(
    q: torch.Tensor,
    k: torch.Tensor,
    regions: int | tuple[int, int],
    topk: int,
    scale: float | None = None,
    pad_mode: str = "mask",
) -> torch.Tensor:
    """Chooses for every region of queries the ``topk`` regions of keys it attends to.

    The arguments are those of ``bilevel_routing_attention``. Computed in at least fp32, whatever
    autocast says: a rounded logit flips a region.

    Returns:
        Region indices, (B, P, topk), the most affine first, row-major over the grid of P regions.
    """
    regions = _check(q, k, regions, topk, pad_mode)
    return reference.route_regions(q, k, regions, topk, _default_scale(q, scale), pad_mode)


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
    return rows, columns
