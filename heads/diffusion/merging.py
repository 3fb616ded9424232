"""Merging of similar tokens of a map (ToMe for Stable Diffusion, arXiv 2303.17604)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["Matching", "Merging", "draw_targets", "match_tokens"]


class Merging(NamedTuple):
    """Which tokens become one.

    Attributes:
        groups: Place in the merged sequence of every token, (B, N).
        length: Length of the merged sequence.
    """

    groups: torch.Tensor
    length: int

    def merge(self, x: torch.Tensor) -> torch.Tensor:
        """Means of the groups, (B, length, C), of tokens (B, N, C)."""
        batch, _, dim = x.shape
        sums_in = torch.promote_types(x.dtype, torch.float32)
        means = torch.zeros(batch * self.length, dim, device=x.device, dtype=sums_in)
        index = self._flat()[:, None].expand(-1, dim)
        means = means.scatter_reduce(
            0, index, x.flatten(0, 1).to(sums_in), "mean", include_self=False
        )
        return means.to(x.dtype).view(batch, self.length, dim)

    def unmerge(self, x: torch.Tensor) -> torch.Tensor:
        """Copies of merged tokens (B, length, C) to all of their groups, (B, N, C)."""
        return x.flatten(0, 1)[self._flat()].view(*self.groups.shape, -1)

    def _flat(self) -> torch.Tensor:
        first = torch.arange(len(self.groups), device=self.groups.device) * self.length
        return (self.groups + first[:, None]).flatten()


class Matching(NamedTuple):
    """Targets, which stay, and sources, which may be merged into them.

    Attributes:
        targets: Tokens that are targets, in their order, (T,).
        sources: The other tokens, (B, S), those most similar to a target first.
        partners: The target that each source is most similar to, as an index of ``targets``,
            (B, S).
    """

    targets: torch.Tensor
    sources: torch.Tensor
    partners: torch.Tensor

    def merging(self, count: int) -> Merging:
        """The merging of ``count`` sources, or of all if there are no more.

        The merged sequence has the sources that are kept, then the targets.
        """
        batch, sources = self.sources.shape
        count = min(count, sources)
        kept = sources - count
        groups = self.sources.new_empty(batch, sources + len(self.targets))
        places = self.partners + kept
        places[:, count:] = torch.arange(kept, device=groups.device)
        groups.scatter_(1, self.sources, places)
        groups[:, self.targets] = kept + torch.arange(len(self.targets), device=groups.device)
        return Merging(groups, kept + len(self.targets))


def draw_targets(
    size: tuple[int, int],
    stride: tuple[int, int],
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Chooses one token of each cell of a map; what is left over at the far borders has no cell.

    Args:
        size: Height and width of the map.
        stride: Height and width of the cells.
        generator: Chooses at random, on the CPU; None takes the first of each cell.

    Returns:
        Indices of tokens, (T,), ascending.

    Raises:
        ValueError: If the map is smaller than a cell.
    """
    rows, columns = size[0] // stride[0], size[1] // stride[1]
    if not rows or not columns:
        raise ValueError(f"a map of {size[0]} x {size[1]} tokens has no cell of {stride}")
    offsets = torch.zeros(rows, columns, dtype=torch.int64)
    if generator is not None:
        offsets.random_(stride[0] * stride[1], generator=generator)
    y = torch.arange(rows)[:, None] * stride[0] + offsets // stride[1]
    x = torch.arange(columns) * stride[1] + offsets % stride[1]
    return (y * size[1] + x).flatten().sort().values


@torch.no_grad()
def match_tokens(metric: torch.Tensor, targets: torch.Tensor) -> Matching:
    """Finds for all other tokens the most similar target, by the cosine.

    Args:
        metric: What is compared, (B, N, C).
        targets: Indices of the targets, (T,), ascending.

    Returns:
        The matching.
    """
    batch, tokens, _ = metric.shape
    targets = targets.to(metric.device)
    is_target = torch.zeros(tokens, dtype=torch.uint8, device=metric.device)
    is_target[targets] = 1
    sources = is_target.argsort(stable=True)[: tokens - len(targets)]
    directions = F.normalize(metric, dim=-1)
    scores = directions[:, sources] @ directions[:, targets].mT  # (B, S, T)
    best, partners = scores.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    return Matching(targets, sources.expand(batch, -1).gather(1, order), partners.gather(1, order))
