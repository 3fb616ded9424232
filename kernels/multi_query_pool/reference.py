"""The definition of multi-query pooling in plain torch."""

import torch


def multi_query_pool(
    x: torch.Tensor, values: torch.Tensor | None, queries: torch.Tensor, scale: float
) -> torch.Tensor:
    """Weighted sums (B, M, E) of values; see ``visattn.kernels.multi_query_pool``."""
    values = x if values is None else values
    return query_attention(x, queries, scale).to(values.dtype) @ values


def query_attention(x: torch.Tensor, queries: torch.Tensor, scale: float) -> torch.Tensor:
    """Weights (B, M, N) of tokens; see ``visattn.kernels.query_attention``."""
    logits = (queries * scale) @ x.transpose(-2, -1)  # (B, M, N)
    return logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
