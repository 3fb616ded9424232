"""Attention over tokens and prompts, in which each role of tokens sees prompts of its own."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["MASK_MODES", "Role", "prompted_attention"]

MASK_MODES = ("post_softmax", "renormalise", "pre_softmax")


class Role(NamedTuple):
    """Which prompts some rows of the tokens see.

    Attributes:
        rows: Tokens of the role.
        columns: Prompts of the role; all others are hidden from it.
        selected: Which of these each token sees, (B, rows, columns); None for all.
    """

    rows: slice
    columns: slice
    selected: torch.Tensor | None = None


def prompted_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prompt_k: torch.Tensor,
    prompt_v: torch.Tensor,
    roles: Sequence[Role],
    mask_mode: str = "post_softmax",
) -> torch.Tensor:
    """Attention of tokens to all tokens and to the prompts of their role.

    Prompts are keys and values alone. ``"post_softmax"`` hides prompts after the softmax: they take
    part in its denominator, and rows sum to at most 1. ``"pre_softmax"`` hides them before it.
    ``"renormalise"`` divides what is left after the softmax by its sum, which is the same function.
    No attention over the tokens is stored in any case.

    Args:
        q: Queries of the tokens (B, heads, N, dim).
        k: Keys of the tokens, likewise.
        v: Values of the tokens, likewise.
        prompt_k: Keys of the prompts (B, heads, P, dim).
        prompt_v: Values of the prompts, likewise.
        roles: Roles, whose rows are all tokens in their order.
        mask_mode: How prompts are hidden: one of ``MASK_MODES``.

    Returns:
        (B, heads, N, dim).
    """
    if mask_mode != "post_softmax":
        parts = [_restricted(q, k, v, prompt_k, prompt_v, role) for role in roles]
    elif all(role.selected is None for role in roles):
        parts = [_zeroed(q, k, v, prompt_k, prompt_v, role) for role in roles]
    else:
        return _selected(q, k, v, prompt_k, prompt_v, roles)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _restricted(q, k, v, prompt_k, prompt_v, role: Role) -> torch.Tensor:
    """Softmax over what the role sees."""
    mask = role.selected
    if mask is not None:
        mask = F.pad(mask, (k.shape[2], 0), value=True)[:, None]
    return F.scaled_dot_product_attention(
        q[:, :, role.rows],
        torch.cat((k, prompt_k[:, :, role.columns]), 2),
        torch.cat((v, prompt_v[:, :, role.columns]), 2),
        attn_mask=mask,
    )


def _zeroed(q, k, v, prompt_k, prompt_v, role: Role) -> torch.Tensor:
    """Softmax over everything, where prompts of other roles have no value."""
    start, stop, _ = role.columns.indices(prompt_v.shape[2])
    hidden = (0, 0, start, prompt_v.shape[2] - stop)
    return F.scaled_dot_product_attention(
        q[:, :, role.rows],
        torch.cat((k, prompt_k), 2),
        torch.cat((v, F.pad(prompt_v[:, :, role.columns], hidden)), 2),
    )


def _selected(q, k, v, prompt_k, prompt_v, roles: Sequence[Role]) -> torch.Tensor:
    """Softmax over everything, and then a mask that differs from token to token.

    Channels are added in which a prompt's value is 1 for its role: they come out as the mass of
    attention to all prompts of the role. How a token divides it between them is a softmax over few
    keys, of which the mask takes its part.
    """
    dim, count = q.shape[-1], prompt_k.shape[2]
    scale = dim**-0.5
    # Fused implementations want multiples of 8.
    more = -(-len(roles) // 8) * 8
    indicator = prompt_v.new_zeros(count, dim + more)
    for number, role in enumerate(roles):
        indicator[role.columns, dim + number] = 1
    out = F.scaled_dot_product_attention(
        F.pad(q, (0, more)),
        F.pad(torch.cat((k, prompt_k), 2), (0, more)),
        torch.cat((F.pad(v, (0, more)), indicator.expand(*prompt_v.shape[:2], -1, -1)), 2),
        scale=scale,
    )
    parts = []
    for number, (rows, columns, selected) in enumerate(roles):
        part, mass = out[:, :, rows, :dim], out[:, :, rows, dim + number, None]
        scores = (q[:, :, rows] * scale) @ prompt_k[:, :, columns].transpose(-2, -1)
        share = scores.softmax(-1).to(mass.dtype)
        if selected is not None:
            share = share * selected[:, None]
        parts.append(part + mass * (share @ prompt_v[:, :, columns]))
    return torch.cat(parts, 2)
