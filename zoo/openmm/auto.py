"""Channels that necks and heads take from the backbone: ``in_channels="auto"``."""

from typing import Any

import torch
from mmengine.config import Config

from ..errors import ConfigError

# Arguments of TimmBackbone that are none of the timm model.
_OWN = (
    "type", "checkpoint", "norm_outputs", "frozen_stages", "norm_eval", "with_cp", "init_cfg",
    "pretrained",
)  # fmt: skip


def resolve_auto_channels(cfg: Config) -> Config:
    """Replaces every ``in_channels="auto"`` of a model, in place.

    A neck takes the channels of all levels of the backbone. A head takes those of the levels it
    names by ``in_index``: of the backbone, or of the neck where there is one; a head without
    ``in_index`` takes the neck's.

    Args:
        cfg: Configuration with a ``model`` whose backbone is a ``TimmBackbone``.

    Returns:
        The same configuration.

    Raises:
        ConfigError: If the channels cannot be known.
    """
    model = cfg.model
    channels = _backbone_channels(model.get("backbone"))
    neck = model.get("neck")
    if neck is not None:
        if neck.get("in_channels") == "auto":
            neck.in_channels = channels
        if "out_channels" in neck:
            channels = [neck.out_channels] * max(neck.get("num_outs", 0), len(channels))
    for name, part in model.items():
        if name not in ("backbone", "neck"):
            _resolve(part, name, channels, has_neck=neck is not None)
    return cfg


def _backbone_channels(backbone: dict[str, Any] | None) -> list[int]:
    from .backbone import create_features

    if backbone is None or backbone.get("type") != "TimmBackbone":
        raise ConfigError(
            'in_channels="auto" takes the channels of a TimmBackbone; the backbone is '
            f"{(backbone or {}).get('type')!r}: give the channels as numbers"
        )
    kwargs = {key: value for key, value in backbone.items() if key not in _OWN}
    with torch.device("meta"):
        features = create_features(
            kwargs.pop("model_name"), kwargs.pop("out_indices", (0, 1, 2, 3)), **kwargs
        )
    return list(features.feature_info.channels())


def _resolve(part: Any, where: str, channels: list[int], has_neck: bool) -> None:
    if isinstance(part, (list, tuple)):
        for index, item in enumerate(part):
            _resolve(item, f"{where}.{index}", channels, has_neck)
    if not isinstance(part, dict):
        return
    if part.get("in_channels") == "auto":
        index = part.get("in_index")
        if index is None and not has_neck:
            raise ConfigError(f'{where} has in_channels="auto" but no in_index to say which level')
        levels = [0] if index is None else [index] if isinstance(index, int) else list(index)
        if max(levels) >= len(channels):
            raise ConfigError(f"{where}.in_index is {index}, but there are {len(channels)} levels")
        taken = [channels[level] for level in levels]
        part["in_channels"] = taken if isinstance(index, (list, tuple)) else taken[0]
    for key, value in part.items():
        _resolve(value, f"{where}.{key}", channels, has_neck)
