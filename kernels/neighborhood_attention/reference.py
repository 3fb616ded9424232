"""The definition of neighborhood attention in plain torch."""

import torch


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rpb: torch.Tensor | None,
    additional_keys: torch.Tensor | None,
    additional_values: torch.Tensor | None,
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    scale: float,
) -> torch.Tensor:
    """See ``visattn.kernels.neighborhood_attention``; the arguments are per axis."""
    axes = [
        neighbors(length, *rule, device=q.device)
        for length, *rule in zip(q.shape[1:-2], kernel, dilation, stride, causal, strict=True)
    ]
    q = q * scale
    seen = _gather(k, axes)  # (B, *spatial, heads, window, dim)
    logits = (q.unsqueeze(-2) @ seen.transpose(-2, -1)).squeeze(-2)  # (B, *spatial, heads, window)
    if rpb is not None:
        logits = logits + _gather_bias(rpb, axes, kernel, dilation)
    if any(causal):
        logits = logits.masked_fill(~_outer([valid for _, valid in axes]), float("-inf"))
    if additional_keys is not None:
        extra = torch.einsum("b...hd,blhd->b...hl", q, additional_keys)
        logits = torch.cat([logits, extra.to(logits.dtype)], -1)
    attention = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    attention = attention.to(v.dtype)

    window, extra = attention.split([seen.shape[-2], attention.shape[-1] - seen.shape[-2]], -1)
    out = (window.unsqueeze(-2) @ _gather(v, axes)).squeeze(-2)
    if additional_values is not None:
        out = out + torch.einsum("b...hl,blhd->b...hd", extra, additional_values)
    return out


def neighbors(
    length: int,
    kernel: int,
    dilation: int,
    stride: int,
    causal: bool,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The keys (length, kernel) that each position of an axis sees, and which of them count.

    Positions that agree modulo ``dilation`` are an axis of their own. On it, the ``stride`` queries
    that follow each other see the window of one of them, their leader: centred there, but moved
    inwards where it would leave the axis. A causal window ends with the leader, and none of its
    queries sees what comes after itself; only there some keys do not count.
    """
    position = torch.arange(length, device=device)
    group, place = position % dilation, position // dilation
    size = (length - group + dilation - 1) // dilation
    first = place // stride * stride
    if causal:
        leader = torch.minimum(first + stride - 1, size - 1)
        start = (leader - kernel + 1).clamp(min=0)
    else:
        leader = torch.minimum(first + stride // 2, size - 1)
        start = torch.minimum((leader - kernel // 2).clamp(min=0), size - kernel)
    seen = start[:, None] + torch.arange(kernel, device=device)
    valid = seen <= place[:, None] if causal else torch.ones_like(seen, dtype=torch.bool)
    return seen * dilation + group[:, None], valid


def _gather(x: torch.Tensor, axes: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """What positions of (B, *spatial, heads, dim) see: (B, *spatial, heads, window, dim)."""
    rank = len(axes)
    for i, (keys, _) in enumerate(axes):
        x = x[(slice(None),) * (2 * i + 1) + (keys,)]
    # (B, *(length, kernel), heads, dim)
    positions, windows = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    return x.permute(0, *positions, 2 * rank + 1, *windows, 2 * rank + 2).flatten(rank + 2, -2)


def _gather_bias(
    rpb: torch.Tensor,
    axes: list[tuple[torch.Tensor, torch.Tensor]],
    kernel: tuple[int, ...],
    dilation: tuple[int, ...],
) -> torch.Tensor:
    """The bias (*spatial, heads, window), by the steps of the dilation from query to key."""
    rank = len(axes)
    for i, (keys, _) in enumerate(axes):
        query = torch.arange(keys.shape[0], device=keys.device)[:, None]
        steps = (keys - query).div(dilation[i], rounding_mode="floor") + kernel[i] - 1
        rpb = rpb[(slice(None),) * (2 * i + 1) + (steps.clamp(0, 2 * kernel[i] - 2),)]
    positions, windows = range(1, 2 * rank, 2), range(2, 2 * rank + 1, 2)
    return rpb.permute(*positions, 0, *windows).flatten(rank + 1)


def _outer(valid: list[torch.Tensor]) -> torch.Tensor:
    """Whether keys count along all axes: (*spatial, 1, window)."""
    rank = len(valid)
    every = valid[0].new_ones(())
    for i, axis in enumerate(valid):
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = axis.shape
        every = every & axis.view(shape)
    return every.flatten(rank).unsqueeze(rank)
