"""Queries, keys and values of one projection."""

from typing import Any

import torch

from ._memory import empty
from .dispatch import is_transformed

__all__ = ["empty_each", "empty_parts", "unpack"]


def unpack(x: torch.Tensor, dim: int, again: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
    """``x.unbind(dim)``, of which the gradient on the CPU is put together in memory that is reused.

    What a projection gives for queries, keys and values is the largest tensor of most attention
    layers, and so is its gradient. Gradients that are in their places already, as those from
    ``empty_parts``, are not copied; those of two uses of a part are added up where they belong.

    Args:
        x: Packed tensor, such as (B, N, 3, C).
        dim: Dimension of the parts.
        again: Parts to have once more, for a second use of them.

    Returns:
        Views of the parts, and once more of those of ``again``.
    """
    plain = type(x) is torch.Tensor and x.device.type == "cpu" and not torch.jit.is_tracing()
    if not (plain and x.requires_grad and torch.is_grad_enabled()):
        return _parts(x, dim, again)
    if torch.compiler.is_compiling() or is_transformed():
        return _parts(x, dim, again)
    return _Unpack.apply(x, dim, again)


def _parts(x: torch.Tensor, dim: int, again: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    parts = x.unbind(dim)
    return *parts, *(parts[i] for i in again)


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dim: int, again: tuple[int, ...]
    ) -> tuple[torch.Tensor, ...]:
        ctx.dim, ctx.shape, ctx.is_leaf, ctx.again = dim, x.shape, x.is_leaf, again
        ctx.set_materialize_grads(False)
        return *x.unbind(dim), *(x.select(dim, i) for i in again)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None, None]:
        count = ctx.shape[ctx.dim]
        by_part = [[grad] for grad in grads[:count]]
        for i, grad in zip(ctx.again, grads[count:], strict=True):
            by_part[i].append(grad)
        by_part = [[grad for grad in each if grad is not None] for each in by_part]
        given = [grad for each in by_part for grad in each]
        if not given:
            return None, None, None
        if len(given) == count:
            packed = _whole(grads[:count], ctx.dim, ctx.shape)
            if packed is not None:
                # Accumulated in place it would change the parts: what is held here is copied first.
                ctx.held = packed if ctx.is_leaf else None
                return packed, None, None
        packed = empty(*ctx.shape, dtype=given[0].dtype)
        for i, each in enumerate(by_part):
            _add_up(each, packed.select(ctx.dim, i))
        return packed, None, None


def _add_up(tensors: list[torch.Tensor], out: torch.Tensor) -> None:
    if not tensors:
        out.zero_()
    elif len(tensors) == 2 and not torch.is_grad_enabled():
        torch.add(*tensors, out=out)
    else:
        out.copy_(sum(tensors[1:], tensors[0]))


def empty_each(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Contiguous memory for the gradients of tensors on the CPU."""
    return tuple(empty(*x.shape, dtype=x.dtype) for x in tensors)


def empty_parts(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Memory for their gradients: parts of one tensor where they are the parts of one.

    Others get memory of their own, in the order of their dimensions in memory but for rows, which
    are contiguous.
    """
    step = _step(tensors)
    first = tensors[0]
    if step is None or not _is_dense((*first.shape, len(tensors)), (*first.stride(), step)):
        return tuple(_empty_in_order(x) for x in tensors)
    packed = empty(len(tensors) * first.numel(), dtype=first.dtype)
    return tuple(
        packed.as_strided(first.shape, first.stride(), i * step) for i in range(len(tensors))
    )


def _empty_in_order(x: torch.Tensor) -> torch.Tensor:
    order = sorted(range(x.ndim - 1), key=x.stride, reverse=True) + [x.ndim - 1]
    memory = empty(*[x.shape[i] for i in order], dtype=x.dtype)
    return memory.permute([order.index(i) for i in range(x.ndim)])


def _step(tensors: tuple[torch.Tensor, ...]) -> int | None:
    """Elements from each of the tensors to the next, where they are alike and in one storage."""
    first, *others = tensors
    storage, start = first.untyped_storage().data_ptr(), first.storage_offset()
    step = others[0].storage_offset() - start
    for i, x in enumerate(others, 1):
        alike = x.shape == first.shape and x.stride() == first.stride() and x.dtype == first.dtype
        if not alike or x.untyped_storage().data_ptr() != storage:
            return None
        if x.storage_offset() - start != i * step:
            return None
    return step


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a tensor fills its memory without gaps or overlaps."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return expected > 0


def _whole(
    parts: tuple[torch.Tensor | None, ...], dim: int, shape: torch.Size
) -> torch.Tensor | None:
    """The contiguous tensor that parts along a dimension are those of, if there is one."""
    if torch.is_grad_enabled() or any(type(part) is not torch.Tensor for part in parts):
        return None
    first = parts[0]
    strides = torch.empty(shape, device="meta").stride()
    dim %= len(shape)
    own = strides[:dim] + strides[dim + 1 :]
    if first.stride() != own or _step(parts) != strides[dim]:
        return None
    return first.as_strided(shape, strides, first.storage_offset())
