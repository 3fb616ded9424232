"""Optimisers from timm's factory, with its parameter groups, and mixed precision on any device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from ..errors import ConfigError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(AmpOptimWrapper):
    """Mixed precision by autocast on any device; float16 with loss scaling.

    Args:
        dtype: ``"float16"`` or ``"bfloat16"``.
        loss_scale: Arguments of ``torch.amp.GradScaler``, for float16.
        **kwargs: For ``OptimWrapper``.
    """

    def __init__(
        self, dtype: str = "float16", loss_scale: dict[str, Any] | None = None, **kwargs: Any
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        # AmpOptimWrapper's own constructor refuses to run without a GPU.
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = DTYPES[dtype]
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler(
            get_device(), enabled=self.cast_dtype == torch.float16, **(loss_scale or {})
        )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no gradient synchronisation between accumulated steps."""
        with (
            OptimWrapper.optim_context(self, model),
            torch.autocast(get_device(), self.cast_dtype),
        ):
            yield


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TimmOptimWrapperConstructor:
    """Builds any of timm's optimisers for a model that is, or contains, a timm model.

    Biases and other vectors, and what the timm model lists in ``no_weight_decay``, are not decayed.
    With ``layer_decay``, learning rates fall by that factor from layer to layer towards the input,
    where the layers are those of the timm model's ``group_matcher``; everything outside the timm
    model (necks, heads) has the full rate.

    Args:
        optim_wrapper_cfg: Configuration of the wrapper; its ``optimizer`` has timm's name under
            ``type`` and the optimiser's arguments.
        paramwise_cfg: ``layer_decay``, ``layer_decay_min_scale``, ``no_weight_decay`` (further
            name patterns) and ``decay_vectors`` (decay biases and vectors, too).
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ):
        self.wrapper_cfg = dict(optim_wrapper_cfg)
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        self.paramwise_cfg = dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Builds the wrapper around an optimiser of the model's parameters."""
        if is_model_wrapper(model):
            model = model.module
        kwargs = dict(self.optimizer_cfg)
        name, lr = kwargs.pop("type"), kwargs.pop("lr")
        groups = parameter_groups(model, lr, kwargs.get("weight_decay", 0.0), **self.paramwise_cfg)
        optimizer = create_optimizer_v2(groups, opt=name, lr=lr, **kwargs)
        return OPTIM_WRAPPERS.build(
            {"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer}
        )


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    layer_decay_min_scale: float = 0.0,
    no_weight_decay: tuple[str, ...] | list[str] = (),
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """timm's parameter groups, with learning rates, of a model that is or contains a timm model.

    Args:
        model: Model.
        lr: Learning rate of the last layer.
        weight_decay: Weight decay of matrices and kernels.
        layer_decay: Factor of the learning rate from layer to layer; None for one rate.
        layer_decay_min_scale: Lower bound of the product of factors.
        no_weight_decay: Patterns of names, as of ``fnmatch``, that are not decayed.
        decay_vectors: Whether biases and vectors are decayed.

    Raises:
        ConfigError: If ``layer_decay`` is asked for and no part of the model knows its layers.
    """
    prefix, timm_model = _find_timm_model(model)
    patterns = {prefix + name for name in getattr(timm_model, "no_weight_decay", set)()}
    patterns |= set(no_weight_decay)
    if layer_decay is None:
        return param_groups_weight_decay(
            model,
            weight_decay,
            weight_decay_exclude_1d=not decay_vectors,
            no_weight_decay_list=patterns,
        )
    if not hasattr(timm_model, "group_matcher"):
        raise ConfigError(
            f"layer_decay needs a timm model with group_matcher, and {type(model).__name__} "
            "contains none: remove paramwise_cfg.layer_decay"
        )
    groups = param_groups_layer_decay(
        _LayeredModel(model, prefix, timm_model),
        weight_decay,
        weight_decay_exclude_1d=not decay_vectors,
        no_weight_decay_list=patterns,
        layer_decay=layer_decay,
        min_scale=layer_decay_min_scale,
    )
    return [{"lr": lr * group.pop("lr_scale"), **group} for group in groups]


class _LayeredModel:
    """What timm's grouping reads off a model, for one that has the timm model as a part."""

    def __init__(self, model: nn.Module, prefix: str, timm_model: nn.Module):
        self.named_parameters = model.named_parameters
        layers = group_parameters(timm_model, timm_model.group_matcher(coarse=False), reverse=True)
        self._layers = {prefix + name: layer for name, layer in layers.items()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        last = max(self._layers.values())
        return lambda name: self._layers.get(name, last)


def _find_timm_model(model: nn.Module) -> tuple[str, nn.Module | None]:
    """Prefix of its names and the outermost module that groups its parameters as timm's do."""
    for name, module in model.named_modules():
        if hasattr(module, "group_matcher") or hasattr(module, "no_weight_decay"):
            return f"{name}." if name else "", module
    return "", None
