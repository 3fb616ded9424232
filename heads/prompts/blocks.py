"""timm's blocks and layers with prompts or adapters in them.

A class here takes the place of timm's own on a module that exists already: the names of its weights
stay as they are, and it finds what was added as a child.
"""

import math

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from .attention import prompted_attention

__all__ = [
    "AdaptedBlock",
    "Bottleneck",
    "LowRank",
    "LowRankLinear",
    "PromptedBlock",
    "ShallowBlock",
]


class PromptedBlock(Block):
    """A block whose attention has prompts as further keys and values, and whose output has none.

    This is what deep prompts are: those of a block are gone after it, so that nobody reads what
    their own queries and MLP would give. The child ``prompts`` makes them and says who sees which.
    """

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Tokens (B, N, D) to the same shape."""
        _refuse_mask(attn_mask, is_causal)
        x = x + self.drop_path1(self.ls1(self._attend(x)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        attn, batch = self.attn, len(x)
        rows, roles = self.prompts(x)
        x, rows = self.norm1(x), self.norm1(rows)

        def heads(y: torch.Tensor) -> torch.Tensor:  # (B, N, D) to (B, heads, N, dim)
            return y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)

        q, k, v = map(heads, attn.qkv(x).chunk(3, -1))
        width = attn.qkv.out_features // 3
        bias = None if attn.qkv.bias is None else attn.qkv.bias[width:]
        prompt_k, prompt_v = F.linear(rows, attn.qkv.weight[width:], bias).chunk(2, -1)
        if self.prompts.affine is not None:
            prompt_v = self.prompts.affine(prompt_v)
        prompt_k = attn.k_norm(heads(prompt_k)).expand(batch, -1, -1, -1)
        prompt_v = heads(prompt_v).expand(batch, -1, -1, -1)
        q, k = attn.q_norm(q), attn.k_norm(k)
        y = prompted_attention(q, k, v, prompt_k, prompt_v, roles, self.prompts.mask_mode)
        y = attn.norm(y.transpose(1, 2).flatten(2))
        if getattr(attn, "gate", None) is not None:
            y = y * attn.gate(x).sigmoid()
        return attn.proj_drop(attn.proj(y))


class ShallowBlock(Block):
    """A block before which prompts join the tokens, after which they leave, or neither.

    Prompts are inserted at ``position`` where the child ``prompts`` is, and ``leave`` of them taken
    out, there, where this is not 0.
    """

    position: int
    leave: int

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Tokens (B, N, D) to (B, N + joining - leaving, D)."""
        _refuse_mask(attn_mask, is_causal)
        if hasattr(self, "prompts"):
            rows = self.prompts.rows(len(x)).expand(len(x), -1, -1).to(x.dtype)
            x = torch.cat((x[:, : self.position], rows, x[:, self.position :]), 1)
        x = super().forward(x)
        if self.leave:
            x = torch.cat((x[:, : self.position], x[:, self.position + self.leave :]), 1)
        return x


def _refuse_mask(attn_mask: torch.Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ValueError("prompts change the attention, which then takes no attn_mask or is_causal")


class Bottleneck(nn.Module):
    """AdaptFormer's adapter: down, ReLU, dropout, up, times a scale; at first it gives zeros.

    Args:
        dim: Channels.
        bottleneck: Hidden channels.
        dropout: Dropout of hidden channels.
        scale: Factor of the output.
    """

    def __init__(
        self,
        dim: int,
        bottleneck: int = 64,
        dropout: float = 0.1,
        scale: float = 0.1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.scale = scale
        self.down = nn.Linear(dim, bottleneck, **dd)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(bottleneck, dim, **dd)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) to the same shape."""
        return self.up(self.dropout(self.down(x).relu())) * self.scale


class AdaptedBlock(Block):
    """A block with the child ``adapter`` beside its MLP."""

    def forward(
        self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False
    ) -> torch.Tensor:
        """Tokens (B, N, D) to the same shape."""
        # Attention of older timm does not know is_causal.
        options = {"attn_mask": attn_mask, **({"is_causal": True} if is_causal else {})}
        attended = self.attn(self.norm1(x), **options)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.adapter(x) + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class LowRank(nn.Module):
    """Low-rank changes of parts of a linear layer's output (LoRA); at first they are zero.

    Args:
        in_features: Channels in.
        out_features: Channels out, of all parts.
        parts: Which of three equal parts of the output are changed.
        rank: Rank of a part.
        alpha: The change is multiplied by this over the rank.
        dropout: Dropout of the input.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parts: tuple[bool, bool, bool] = (True, False, True),
        rank: int = 4,
        alpha: float = 4,
        dropout: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.parts = parts
        self.width = out_features // 3
        self.scale = alpha / rank
        dd = {"device": device, "dtype": dtype}
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Parameter(torch.empty(sum(parts), rank, in_features, **dd))
        self.up = nn.Parameter(torch.zeros(sum(parts), self.width, rank, **dd))
        for part in self.down:
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Channels (..., in) to changes (..., out)."""
        x = self.dropout(x)
        changes = iter(
            [F.linear(F.linear(x, a), b) for a, b in zip(self.down, self.up, strict=True)]
        )
        zero = x.new_zeros(*x.shape[:-1], self.width)
        return self.scale * torch.cat([next(changes) if on else zero for on in self.parts], -1)


class LowRankLinear(nn.Linear):
    """A linear layer with the child ``lora`` beside it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Channels (..., in) to (..., out)."""
        return super().forward(x) + self.lora(x)
