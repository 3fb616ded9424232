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


def project(pooled: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each query's rows of a weight (D_out, E) times what it pooled, (B, M, E): (B, D_out)."""
    weight = weight.unflatten(0, (pooled.shape[1], -1))  # (M, D_out / M, E)
    return torch.einsum("bme,mce->bmc", pooled, weight).flatten(1)


def project_gradient(
    grad: torch.Tensor, pooled: torch.Tensor, weight: torch.Tensor, needs: tuple[bool, bool]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``project`` for what was pooled and for the weight, where needed."""
    need_pooled, need_weight = needs
    count = pooled.shape[1]
    grad = grad.unflatten(1, (count, -1))  # (B, M, D_out / M)
    dpooled, dweight = pooled.new_empty(0), weight.new_empty(0)
    if need_pooled:
        dpooled = torch.einsum("bmc,mce->bme", grad, weight.unflatten(0, (count, -1)))
    if need_weight:
        dweight = torch.einsum("bmc,bme->mce", grad, pooled).flatten(0, 1)
    return dpooled, dweight
