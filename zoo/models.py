"""Building models from what a command line gives: timm's names, or configurations."""

from __future__ import annotations

from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from torch import nn

from .. import backbones  # noqa: F401  registers the models
from .errors import UserError

if TYPE_CHECKING:
    from mmengine.config import Config

Size = tuple[int, int]


def model_name(name: str) -> str:
    """Checks a model's name, with or without the prefix ``timm/``, and returns it without.

    Raises:
        UserError: If timm knows no such model; names the nearest.
    """
    bare = name.removeprefix("timm/")
    if not timm.is_model(bare):
        near = get_close_matches(bare, timm.list_models(), 3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise UserError(f"there is no model {name!r}; {hint}")
    return bare


def input_size(model: nn.Module) -> Size:
    """The height and width in pixels that a model is made for."""
    return tuple(model.pretrained_cfg["input_size"][1:])


def build_model(name: str, img_size: Size | None = None, **kwargs: Any) -> nn.Module:
    """Builds a model with random weights, for a given input size where it depends on one.

    Args:
        name: Name as ``model_name`` takes it.
        img_size: Height and width in pixels; those the model is made for by default.
        **kwargs: For ``timm.create_model``.

    Raises:
        UserError: If there is no such model, or it does not take these arguments or this size.
    """
    try:
        model = timm.create_model(model_name(name), **kwargs)
    except TypeError as error:
        raise UserError(f"{name} cannot be built with {kwargs}: {error}") from error
    if img_size is not None and img_size != input_size(model):
        resize = getattr(model, "set_input_size", None)
        if resize is not None:
            try:
                resize(img_size=img_size)
            except (AssertionError, RuntimeError, ValueError, TypeError) as error:
                raise UserError(wrong_size(name, img_size, error)) from error
    return model


def is_config(name: str | Path) -> bool:
    """Whether what is given in place of a model's name is the path of a configuration."""
    return Path(name).suffix in (".py", ".yml", ".yaml", ".json")


def build_configured(cfg: Config) -> nn.Module:
    """Builds the model of a configuration with random weights, for one process.

    Args:
        cfg: Configuration from ``visattn.zoo.config.load_config``, of any task; not changed.

    Returns:
        The model in eval mode; its batch norms are not synchronised between processes.
    """
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

    from .openmm.auto import resolve_auto

    cfg = resolve_auto(deepcopy(cfg))
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "visattn")):
        return revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


def wrong_size(name: str, img_size: Size, error: Exception) -> str:
    """Says that a model does not take images of a size."""
    cause = (str(error) or type(error).__name__).strip().splitlines()[0]
    return f"{name} does not take images of {img_size[0]} x {img_size[1]} pixels: {cause}"
