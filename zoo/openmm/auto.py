"""Channels and strides that necks and heads take from the backbone, where they are ``"auto"``."""

from typing import Any, NamedTuple, get_type_hints

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from ..errors import ConfigError

# Arguments of TimmBackbone that are none of the timm model.
_OWN = (
    "type", "checkpoint", "norm_outputs", "frozen_stages", "norm_eval", "bn_momentum", "with_cp",
    "init_cfg", "pretrained",
)  # fmt: skip
_OWN_STRIDES = ("featmap_strides", "feature_strides")
_KEYS = ("in_channels", "strides", *_OWN_STRIDES)
# Pixels a side of the image that other backbones are asked their channels with.
_SIDE = 128


def resolve_auto(cfg: Config) -> Config:
    """Replaces what of a model is ``"auto"``, in place: channels and strides.

    ``in_channels``: a neck takes the channels of all levels of the backbone. A head takes those of
    the levels it names by ``in_index``: of the backbone, or of the neck where there is one; a head
    without ``in_index`` takes the neck's, or without a neck a level for each of its ``strides``.

    ``strides`` of anchors and points: those of all levels that heads see. ``featmap_strides`` of
    region extractors and ``feature_strides`` of heads: those of the levels of the backbone.

    Args:
        cfg: Configuration with a ``model``; it has a backbone if there is anything to replace.

    Returns:
        The same configuration.

    Raises:
        ConfigError: If the channels or strides cannot be known.
    """
    model = cfg.model
    if not _has_auto(model):
        return cfg
    levels = _levels(model.get("backbone"), cfg.get("default_scope", "visattn"))
    neck = model.get("neck")
    if neck is not None:
        levels = _after_neck(neck, levels, cfg.get("default_scope", "visattn"))
    for name, part in model.items():
        if name not in ("backbone", "neck"):
            _resolve(part, name, levels, has_neck=neck is not None)
    return cfg


def _has_auto(node: Any) -> bool:
    if isinstance(node, dict):
        return any(node.get(key) == "auto" for key in _KEYS) or any(map(_has_auto, node.values()))
    return isinstance(node, (list, tuple)) and any(map(_has_auto, node))


class _Levels(NamedTuple):
    """Feature levels, the finest first: channels and strides, and how many are the backbone's."""

    channels: list[int]
    strides: list[int]
    own: int


def _levels(backbone: dict[str, Any] | None, scope: str) -> _Levels:
    """Levels of a backbone, which is built, and run if it does not say, without memory."""
    from .backbone import create_features

    if backbone is None:
        raise ConfigError('"auto" takes channels and strides of a backbone, and the model has none')
    if backbone.get("type") == "TimmBackbone":
        kwargs = {key: value for key, value in backbone.items() if key not in _OWN}
        with torch.device("meta"):
            info = create_features(
                kwargs.pop("model_name"), kwargs.pop("out_indices", (0, 1, 2, 3)), **kwargs
            ).feature_info
        channels, strides = list(info.channels()), list(info.reduction())
    else:
        config = {key: value for key, value in backbone.items() if key != "init_cfg"}
        try:
            with torch.device("meta"), DefaultScope.overwrite_default_scope(scope), torch.no_grad():
                maps = MODELS.build(config)(torch.empty(2, 3, _SIDE, _SIDE))
        except (AssertionError, KeyError, RuntimeError, TypeError) as error:
            raise ConfigError(
                f"cannot tell the channels of the backbone {backbone.get('type')!r} ({error}): "
                'give numbers in place of "auto"'
            ) from error
        channels, strides = [m.shape[1] for m in maps], [_SIDE // m.shape[-1] for m in maps]
    return _Levels(channels, strides, len(channels))


def _after_neck(neck: dict[str, Any], levels: _Levels, scope: str) -> _Levels:
    if neck.get("in_channels") == "auto":
        if _takes_one_level(neck, scope):
            levels = _Levels(levels.channels[-1:], levels.strides[-1:], 1)
            neck["in_channels"] = levels.channels[0]
        else:
            neck["in_channels"] = levels.channels
    if "out_channels" not in neck:
        return levels
    strides = levels.strides[neck.get("start_level", 0) :]
    own = len(strides)
    while len(strides) < neck.get("num_outs", 0):
        strides = [*strides, 2 * strides[-1]]
    return _Levels([neck["out_channels"]] * max(len(strides), levels.own), strides, own)


def _takes_one_level(neck: dict[str, Any], scope: str) -> bool:
    if "type" not in neck:
        return False
    with DefaultScope.overwrite_default_scope(scope):
        cls = MODELS.get(neck["type"])
    return cls is not None and get_type_hints(cls.__init__).get("in_channels") is int


def _resolve(part: Any, where: str, levels: _Levels, has_neck: bool) -> None:
    if isinstance(part, (list, tuple)):
        for index, item in enumerate(part):
            _resolve(item, f"{where}.{index}", levels, has_neck)
    if not isinstance(part, dict):
        return
    if part.get("strides") == "auto":
        part["strides"] = list(levels.strides)
    for key in _OWN_STRIDES:
        if part.get(key) == "auto":
            part[key] = levels.strides[: levels.own]
    if part.get("in_channels") == "auto":
        index = part.get("in_index")
        if index is None and not has_neck and "strides" in part:
            index = list(range(len(part["strides"])))
        if index is None and not has_neck:
            raise ConfigError(f'{where} has in_channels="auto" but no in_index to say which level')
        numbers = [0] if index is None else [index] if isinstance(index, int) else list(index)
        count = len(levels.channels)
        if max(numbers) >= count:
            raise ConfigError(f"{where}.in_index is {index}, but there are {count} levels")
        taken = [levels.channels[number] for number in numbers]
        part["in_channels"] = taken if isinstance(index, (list, tuple)) else taken[0]
    for key, value in part.items():
        _resolve(value, f"{where}.{key}", levels, has_neck)
