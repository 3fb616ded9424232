"""Building models as timm does, and loading the authors' checkpoints into them."""

import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg
from timm.models._builder import resolve_pretrained_cfg
from torch import nn

_logger = logging.getLogger(__name__)

StateDict = dict[str, torch.Tensor]
FilterFn = Callable[[StateDict, nn.Module], StateDict]

# Checkpoints of training scripts may hold their configuration. Read as a plain dictionary it needs
# neither yacs nor trust: this is about what ``torch.load(weights_only=True)`` may build.
torch.serialization.add_safe_globals([(OrderedDict, "yacs.config.CfgNode")])


def build_model(
    cls: type[nn.Module], variant: str, pretrained: bool, filter_fn: FilterFn, **kwargs: Any
) -> nn.Module:
    """Builds a model through timm's ``build_model_with_cfg``.

    What this adds: ``load_state_dict``, and with it ``timm.create_model(checkpoint_path=...)``,
    takes the authors' state dict as well as ours, also for ``features_only`` models; and
    ``pretrained=True`` raises where there is nothing to download instead of leaving the model
    untrained.

    Args:
        cls: Model class.
        variant: Registered name.
        pretrained: Whether to load the weights that the pretrained configuration names.
        filter_fn: Maps an official state dict to ours; returns ours unchanged.
        **kwargs: For ``build_model_with_cfg``.

    Raises:
        ValueError: If ``pretrained`` and the configuration names no weights.
    """
    if pretrained:
        _require_weights(variant, kwargs)
    kwargs.setdefault("feature_cfg", {})["feature_cls"] = "getter"
    features_only = kwargs.get("features_only", False)
    model = build_model_with_cfg(cls, variant, pretrained, pretrained_filter_fn=filter_fn, **kwargs)
    model.convert_state_dict = _StateDictConverter(filter_fn, features_only)
    model.register_load_state_dict_pre_hook(_convert_before_load)
    return model


def unwrap(state_dict: StateDict) -> StateDict:
    """A state dict out of what training tools put around it and before its keys."""
    for wrapper in ("state_dict_ema", "state_dict", "model"):
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
    return {re.sub(r"^(module\.)?(backbone\.)?", "", k): v for k, v in state_dict.items()}


def keep_initial(state_dict: StateDict, model: nn.Module, pattern: str) -> StateDict:
    """A state dict with a model's own values for parts that it has not at all.

    Weights of a plain network so load, strictly, into one that has more: what is new keeps its
    initial values, which is logged. A state dict with some of the parts is returned as it is.

    Args:
        state_dict: State dict in the layout of the model.
        model: Model.
        pattern: Matches the names of the entries that may be lacking, all or none.
    """
    if any(re.search(pattern, key) for key in state_dict):
        return state_dict
    new = {key: value for key, value in model.state_dict().items() if re.search(pattern, key)}
    if new:
        _logger.info(
            "%s: %d entries that the weights lack keep their initial values, such as %s",
            type(model).__name__,
            len(new),
            next(iter(new)),
        )
    return {**state_dict, **new}


def rename(
    state_dict: StateDict,
    rules: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]],
) -> StateDict:
    """Replaces patterns in the keys of a state dict, one after the other."""
    renamed = {}
    for key, value in state_dict.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


NEXT_STAGE = (
    r"^(?:levels|layers)\.(\d)\.(?=downsample)",
    lambda match: f"stages.{int(match[1]) + 1}.",
)
"""Rule for official stages that end with the downsampling that ours begin with."""


def _require_weights(variant: str, kwargs: dict[str, Any]) -> None:
    cfg = resolve_pretrained_cfg(
        variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
    )
    if not cfg.has_weights:
        origin = f" from {cfg.origin_url}" if cfg.origin_url else ""
        raise ValueError(
            f"{variant} has no weights to download; get the authors' file{origin} and pass "
            f"checkpoint_path=FILE, or pretrained_cfg_overlay=dict(file=FILE) with pretrained=True"
        )


class _StateDictConverter:
    """Maps an official state dict to that of a model, also of a ``features_only`` one."""

    def __init__(self, filter_fn: FilterFn, features_only: bool):
        self.filter_fn = filter_fn
        self.features_only = features_only

    def __call__(self, model: nn.Module, state_dict: StateDict) -> StateDict:
        if not self.features_only:
            return self.filter_fn(state_dict, model)
        if all(key.startswith("model.") for key in state_dict):
            return state_dict
        return _keep_features(self.filter_fn(state_dict, model.model), model.model)


def _convert_before_load(
    model: nn.Module, state_dict: StateDict, prefix: str, *args: object
) -> None:
    if prefix or not state_dict:
        return
    converted = model.convert_state_dict(model, dict(state_dict))
    state_dict.clear()
    state_dict.update(converted)


def _keep_features(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Drops the parts of a whole classifier that its features lack; adds the wrapper's prefix."""
    return {f"model.{k}": v for k, v in state_dict.items() if not _is_pruned(k, model)}


def _is_pruned(key: str, model: nn.Module) -> bool:
    """Whether an entry is of a part that was cut off a sequence, or put an identity in place of."""
    module = model
    for name in key.split(".")[:2]:
        if name not in module._modules:
            cut = isinstance(module, nn.Sequential | nn.ModuleList)
            return cut or (module is model and module._parameters.get(name, key) is None)
        module = module._modules[name]
        if isinstance(module, nn.Identity):
            return True
    return False
