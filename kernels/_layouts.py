"""How compiled code is told of tensors."""

import torch

__all__ = ["DTYPE_CODES", "layout", "with_contiguous_rows"]

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def layout(x: torch.Tensor, dims: int | None = None) -> tuple[int, ...]:
    """Code of the dtype, address, and strides in bytes.

    Args:
        x: Tensor.
        dims: How many dimensions' strides, from the first on; all by default. Negative: all but as
            many of the last.
    """
    size = x.element_size()
    return DTYPE_CODES[x.dtype], x.data_ptr(), *[stride * size for stride in x.stride()[:dims]]


def with_contiguous_rows(*tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Tensors, or copies of those whose last dimension is not contiguous; None stays None."""
    return tuple(x if x is None or x.stride(-1) == 1 else x.contiguous() for x in tensors)
