"""The definition of multi-query pooling in plain torch."""

import torch


def multi_query_pool(x: torch.Tensor, queries: torch.Tensor, scale: float) -> torch.Tensor:
    """Weighted sums (B, M, D); see ``visattn.kernels.multi_query_pool``."""
    logits = (queries * scale) @ x.transpose(-2, -1)  # (B, M, N)
    attention = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return attention.to(x.dtype) @ x
