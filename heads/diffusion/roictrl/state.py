"""The weights of ROICtrl by themselves, in the authors' layout."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .attach import apply, attachment, fusers, is_applied, remove

__all__ = ["load_roictrl", "roictrl_state_dict", "save_roictrl"]

_ANCHOR = "position_net.null_position_feature"
_SETTINGS = ("max_instances", "unpool_mode", "shuffle", "gate", "roi_sizes")


def roictrl_state_dict(unet: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of ROICtrl in a UNet, under the authors' names.

    Raises:
        ValueError: If it is not in the UNet.
    """
    attachment(unet)
    return {name: p.detach() for name, p in unet.named_parameters() if _is_own(name)}


def save_roictrl(unet: nn.Module, path: str | Path) -> None:
    """Writes the weights of ROICtrl as safetensors, with its settings as metadata.

    Raises:
        ValueError: If it is not in the UNet.
    """
    from safetensors.torch import save_file

    state = {name: p.contiguous() for name, p in roictrl_state_dict(unet).items()}
    fuser = next(iter(fusers(unet).values()))
    settings = {name: getattr(fuser, name) for name in _SETTINGS}
    save_file(state, path, {"format": "pt", "roictrl": json.dumps(settings)})


def load_roictrl(
    unet: nn.Module, source: str | Path | Mapping[str, torch.Tensor], **settings: Any
) -> nn.Module:
    """Loads weights of ROICtrl, strictly, and applies it first where it is not in the UNet.

    Args:
        unet: UNet; unchanged if this raises.
        source: File of ``save_roictrl`` or of the authors (safetensors, or what ``torch.load``
            reads with ``weights_only=True``), or weights by name. Names may have a common prefix.
        settings: Keywords of ``apply``, over those that the file has.

    Returns:
        The UNet.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If names or shapes are not those of ROICtrl in this UNet, or settings are given
            for one that has it already.
    """
    state, stored = (source, {}) if isinstance(source, Mapping) else _read(Path(source))
    state = _without_prefix(state)
    fresh = not is_applied(unet)
    if fresh:
        apply(unet, **{**stored, **settings})
    elif settings:
        raise ValueError(
            f"ROICtrl is in the UNet already, with its own {', '.join(settings)}: remove it first"
        )
    own = roictrl_state_dict(unet)
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "reshaped": sorted(
            f"{name}: {tuple(state[name].shape)} given, {tuple(own[name].shape)} here"
            for name in state.keys() & own.keys()
            if state[name].shape != own[name].shape
        ),
    }
    if any(problems.values()):
        if fresh:
            remove(unet)
        listed = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(f"these are not the weights of ROICtrl in this UNet: {listed}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])
    return unet


def _is_own(name: str) -> bool:
    return name.startswith("position_net.") or ".roifuser." in name


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix != ".safetensors":
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state.get("state_dict", state), {}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        settings = json.loads((file.metadata() or {}).get("roictrl", "{}"))
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "roi_sizes" in settings:
        settings["roi_sizes"] = {int(k): v for k, v in settings["roi_sizes"].items()}
    return state, settings


def _without_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without what all of them begin with, such as ``unet.``."""
    anchors = [name for name in state if name.endswith(_ANCHOR)]
    prefix = anchors[0].removesuffix(_ANCHOR) if anchors else ""
    if not all(name.startswith(prefix) for name in state):
        prefix = ""
    return {name.removeprefix(prefix): value for name, value in state.items()}
