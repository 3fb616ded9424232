"""The weights that are trained, by themselves."""

import re
from collections.abc import Mapping

import torch
from torch import nn

__all__ = ["load_trainable", "trainable_state_dict"]

_OFFICIAL = re.compile(r"Pool\.Pool_(cls|image)\.(keys|prompts)")


def trainable_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a model that are not frozen, by name; those that modules share come once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Loads what ``trainable_state_dict`` gave, or what the authors' TCPA would save, strictly.

    Args:
        model: Model with the same prompts, of the same settings; unchanged if this raises.
        state: Weights by name. Weights of a frozen backbone, which the authors' files have too, may
            be among them if they are the model's.

    Raises:
        ValueError: If names or shapes are not those of the weights that are trained, or frozen
            weights differ from the model's.
    """
    state = _from_official(state)
    own = dict(model.named_parameters())
    trained = {name for name, p in own.items() if p.requires_grad}
    missing = sorted(trained - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    reshaped = sorted(
        f"{name}: {tuple(state[name].shape)} given, {tuple(own[name].shape)} here"
        for name in state.keys() & own.keys()
        if state[name].shape != own[name].shape
    )
    problems = {"missing": missing, "unexpected": unexpected, "reshaped": reshaped}
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(
            f"these are not the trained weights of this model: {listed}; apply the same prompts, "
            "with the same keywords and number of classes, first"
        )
    frozen = state.keys() - trained
    differing = [n for n in sorted(frozen) if not torch.equal(state[n].to(own[n]), own[n])]
    if differing:
        raise ValueError(
            f"they were trained on another backbone: {differing[0]} and {len(differing) - 1} more "
            "frozen weights differ; load that backbone first"
        )
    with torch.no_grad():
        for name in trained:
            own[name].copy_(state[name])


def _from_official(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Maps the names of TCPA's code to ours; others stay."""
    if not any(_OFFICIAL.fullmatch(name) for name in state):
        return dict(state)
    mapped: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        match = _OFFICIAL.fullmatch(name)
        if match:
            for layer, part in enumerate(value):
                mapped[f"blocks.{layer}.prompts.{match[1]}.{match[2]}"] = part
        elif name in ("ADVP_w", "ADVP_b"):
            kind = {"w": "weight", "b": "bias"}[name[-1]]
            mapped[f"blocks.0.prompts.affine.{kind}"] = value
        else:
            for number, layer in enumerate(("conv1", "act", "conv2")):
                theirs = f"Prompter.Prompter.{number}."
                name = name.replace(theirs, f"prompter.conv.layers.{layer}.")
            mapped[name.removeprefix("backbone.")] = value
    return mapped
