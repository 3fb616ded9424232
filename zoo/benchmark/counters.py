"""Counting what a model computes and how much memory a step of it takes."""

import itertools
import math
import os
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ...kernels import use_impl
from ...kernels._memory import without_reuse

aten = torch.ops.aten


def _norm(macs_per_element: int) -> Callable[..., int]:
    def flops(shape: Sequence[int], *args: object, **kwargs: object) -> int:
        return 2 * macs_per_element * math.prod(shape)

    return flops


# What fvcore counts, and so timm's tables and most papers: 2 an element of a batch norm at
# inference, 5 an element of a norm that computes its statistics.
_NORMS = {
    aten.native_batch_norm: _norm(2),
    aten.cudnn_batch_norm: _norm(2),
    aten.miopen_batch_norm: _norm(2),
    aten._native_batch_norm_legit_no_training: _norm(2),
    aten.native_layer_norm: _norm(5),
    aten.native_group_norm: _norm(5),
}


def count_parameters(model: nn.Module) -> int:
    """Number of elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(
    model: nn.Module, images: torch.Tensor, leave_out: tuple[type[nn.Module], ...] = ()
) -> int:
    """Multiply-adds of one inference: products of matrices, convolutions, attention and norms.

    Attention is counted in any spelling, also as ``scaled_dot_product_attention``, and the ops of
    ``visattn.kernels`` by their definitions. Norms are counted as fvcore does; activations,
    softmax, pooling and additions are not.

    Args:
        model: Model, in eval mode.
        images: Input, (B, C, H, W); one image for figures as papers give them.
        leave_out: Modules that do not count, such as pooling that is defined by products.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_NORMS)
    math = sdpa_kernel(SDPBackend.MATH)
    # The counter's hooks expect that what modules return has a history, if it has gradients.
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    with torch.inference_mode(), math, use_impl("reference"), counter:
        torch.func.functional_call(model, parameters, images)
    counts, root = counter.get_flop_counts(), type(model).__name__
    uncounted = sum(
        sum(counts.get(f"{root}.{name}", {}).values())
        for name, module in model.named_modules()
        if isinstance(module, leave_out)
    )
    return (counter.get_total_flops() - uncounted) // 2


def peak_memory(step: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes that one call of ``step`` takes beyond what is allocated before it.

    With the model, its optimiser and the input made before, and gradients freed, this is what
    activations, gradients and workspaces need at the worst moment. On CUDA it is the growth of
    ``torch.cuda.max_memory_allocated``; on the CPU it is counted from every allocation and release
    of PyTorch's CPU allocator, including those within operators; kernels get all their memory from
    it here. Memory that other libraries allocate for themselves is not seen.

    Args:
        step: What to run, once; call it before, so that lazily made state exists.
        device: Where it runs.

    Returns:
        Bytes, or None on devices other than the CPU and CUDA, which keep no such record.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    trace = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with without_reuse(), trace:
        step()
    changes = (
        event.nbytes()
        for event in sorted(
            (e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"),
            key=lambda e: e.start_ns(),
        )
    )
    return max(itertools.accumulate(changes, initial=0))
