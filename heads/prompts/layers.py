"""The prompts of one block: tokens, and pools that tokens choose from."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .attention import Role

__all__ = ["PromptPool", "PromptPools", "TokenPrompts", "ValueAffine", "fourier", "random_entries"]


def fourier(prompts: torch.Tensor, share: float = 1.0) -> torch.Tensor:
    """Real part of the transform of prompts over channels and prompts (VFPT), not normalised.

    Args:
        prompts: (..., P, D).
        share: Share of the prompts, the first of them, that are transformed.

    Returns:
        The same shape.
    """
    count = round(share * prompts.shape[-2])
    if count == 0:
        return prompts
    moved = torch.fft.fft2(prompts[..., :count, :].float(), dim=(-1, -2)).real.to(prompts.dtype)
    return torch.cat((moved, prompts[..., count:, :]), -2)


def random_entries(
    shape: Sequence[int],
    count: int,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Distinct random indices along the last axis of a shape, (..., count)."""
    noise = torch.rand(*shape, device=device, generator=generator)
    return noise.argsort(-1)[..., :count]


class TokenPrompts(nn.Module):
    """Prompts that all tokens see (VPT).

    Args:
        dim: Channels.
        length: Number of prompts.
        bound: They are initialised uniformly within plus and minus this.
        dropout: Dropout of their channels, another for each sample.
        fourier_share: Share of them that go through ``fourier``.
    """

    mask_mode = "post_softmax"
    affine = None

    def __init__(
        self,
        dim: int,
        length: int,
        bound: float = 1.0,
        dropout: float = 0.1,
        fourier_share: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.fourier_share = fourier_share
        self.prompts = nn.Parameter(torch.empty(length, dim, device=device, dtype=dtype))
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.prompts, -bound, bound)

    def rows(self, batch: int) -> torch.Tensor:
        """The prompts (B, P, D) for a batch; (1, P, D) where all samples have the same."""
        return _rows(self.prompts, self.dropout, self.fourier_share, batch)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Role]]:
        """Prompts as of ``rows`` for tokens (B, N, D), and who sees which."""
        return self.rows(len(x)), [Role(slice(None), slice(None))]


def _rows(prompts: torch.Tensor, dropout: nn.Dropout, share: float, batch: int) -> torch.Tensor:
    rows = prompts[None]
    if dropout.training and dropout.p > 0:
        rows = dropout(rows.expand(batch, -1, -1))
    return fourier(rows, share)


class PromptPool(nn.Module):
    """A pool of prompts from which tokens choose by the nearest keys.

    Args:
        dim: Channels.
        size: Entries S.
        length: Prompts of an entry.
        topk: Entries that a token chooses; None for all of them, without keys.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        length: int,
        topk: int | None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.topk = topk
        self.random = False
        dd = {"device": device, "dtype": dtype}
        self.keys = None if topk is None else nn.Parameter(torch.empty(size, dim, **dd))
        self.prompts = nn.Parameter(torch.empty(size, length, dim, **dd))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1, 1)

    @property
    def num_prompts(self) -> int:
        """Prompts of all entries."""
        return self.prompts.shape[0] * self.prompts.shape[1]

    def match(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chooses entries for tokens (B, N, D).

        Returns:
            Which prompts each token sees, (B, N, prompts); and the mean distance of tokens from the
            keys that they chose, through which alone the keys learn.
        """
        # In full precision: the order of near keys must not hang on rounding.
        with torch.autocast(tokens.device.type, enabled=False):
            cosine = F.normalize(tokens.float(), dim=-1) @ F.normalize(self.keys.float(), dim=-1).T
        if self.random and self.training:
            chosen = random_entries(cosine.shape, self.topk, cosine.device)
        else:
            chosen = cosine.detach().topk(self.topk).indices
        seen = torch.zeros_like(cosine, dtype=torch.bool).scatter(-1, chosen, True)
        distance = 1 - cosine.gather(-1, chosen).mean()
        return seen.repeat_interleave(self.prompts.shape[1], -1), distance


class PromptPools(nn.Module):
    """Pools for tokens of the class and of the image (TCPA, sections 2.1 to 2.3 of the method).

    Args:
        dim: Channels.
        num_prefix: Tokens before those of the image.
        num_class: How many of them are of the class role; the others see no prompts.
        pool_size: Entries of the pools of class and image.
        length: Prompts of an entry, likewise.
        topk: Entries that a token chooses, likewise.
        token_level: Whether tokens choose; otherwise they see all prompts of their role (R-TCPA).
        mask_mode: See ``prompted_attention``.
        dropout: Dropout of the prompts' channels, another for each sample.
        fourier_share: Share of the prompts of both pools together that go through ``fourier``.
        affine: Changes the values of prompts.
    """

    def __init__(
        self,
        dim: int,
        num_prefix: int,
        num_class: int,
        pool_size: tuple[int, int] = (18, 18),
        length: tuple[int, int] = (1, 1),
        topk: tuple[int, int] = (10, 10),
        token_level: bool = True,
        mask_mode: str = "post_softmax",
        dropout: float = 0.1,
        fourier_share: float = 0.0,
        affine: "ValueAffine | None" = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_prefix = num_prefix
        self.num_class = num_class
        self.token_level = token_level
        self.mask_mode = mask_mode
        self.fourier_share = fourier_share
        topk = topk if token_level else (None, None)
        pools = [
            PromptPool(dim, *settings, device, dtype)
            for settings in zip(pool_size, length, topk, strict=True)
        ]
        # Without tokens of the class role nothing would train its pool.
        self.cls = pools[0] if num_class else None
        self.image = pools[1]
        self.dropout = nn.Dropout(dropout)
        self.affine = affine
        self.collects = False
        self.distance: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A distance belongs to one pass, and what has a gradient cannot be copied.
        return {**self.__dict__, "distance": None}

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[Role]]:
        """Prompts (B, P, D) for tokens (B, N, D), those of the class first, and who sees which.

        Keeps the distance of the tokens from their keys while ``collects`` is set.
        """
        pools = [pool for pool in (self.cls, self.image) if pool is not None]
        prompts = torch.cat([pool.prompts.flatten(0, 1) for pool in pools])
        rows = _rows(prompts, self.dropout, self.fourier_share, len(x))
        first = len(prompts) - self.image.num_prompts
        roles = [
            Role(slice(0, self.num_class), slice(0, first)),
            Role(slice(self.num_class, self.num_prefix), slice(0, 0)),
            Role(slice(self.num_prefix, None), slice(first, None)),
        ]
        distances = []
        for index, pool in ((0, self.cls), (2, self.image)):
            if self.token_level and pool is not None:
                seen, distance = pool.match(x[:, roles[index].rows])
                roles[index] = roles[index]._replace(selected=seen)
                distances.append(distance)
        if self.collects and distances:
            self.distance = sum(distances)
        return rows, [role for role in roles if role.rows.start != role.rows.stop]


class ValueAffine(nn.Module):
    """An affine map of the values of prompts (ADVP), one for all blocks.

    Args:
        count: Prompts.
        dim: Channels of all heads.
    """

    def __init__(
        self,
        count: int,
        dim: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, mean in (("weight", 1.0), ("bias", 0.0)):
            noise = nn.init.kaiming_normal_(torch.empty(1, count, dim, device=device, dtype=dtype))
            setattr(self, name, nn.Parameter(mean + 0.1 * noise))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values (B, P, D) to the same shape."""
        return values * self.weight + self.bias
