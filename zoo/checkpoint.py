"""Reading checkpoints safely, and loading them strictly with a report."""

import argparse
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .errors import UserError

StateDict = dict[str, torch.Tensor]

# What training scripts store beside tensors and what cannot run code: their command-line options
# and NumPy numbers.
_HARMLESS = [
    argparse.Namespace,
    np.dtype,
    np._core.multiarray.scalar,
    *(type(np.dtype(name)) for name in "bhilBHILefd?"),
]


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or does not fit the model; says which and what to do."""


@dataclass(frozen=True)
class LoadReport:
    """How the entries of a checkpoint met those of a model.

    Attributes:
        matched: Names found in both, of equal shape.
        missing: Names of the model that the checkpoint lacks.
        unexpected: Names of the checkpoint that the model lacks.
        reshaped: Names found in both with different shapes, as (name, checkpoint's, model's).
    """

    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = field(default=())

    @property
    def is_whole(self) -> bool:
        """Whether every entry of either side found its counterpart."""
        return not (self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        lines = [
            f"{len(self.matched)} matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.reshaped)} reshaped"
        ]
        reshaped = [
            f"{name}: {theirs} in the file, {ours} here" for name, theirs, ours in self.reshaped
        ]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("reshaped", reshaped),
        ):
            if names:
                more = f", and {len(names) - 8} more" if len(names) > 8 else ""
                lines.append(f"  {title}: {', '.join(names[:8])}{more}")
        return "\n".join(lines)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a ``.pth`` or ``.safetensors`` file onto the CPU without running code from it.

    Raises:
        CheckpointError: If the file is missing, cut short, no checkpoint, or a pickle of objects
            that loading would have to execute.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        cause = re.search(r"unsupported (global|class).{,120}", str(error), re.IGNORECASE)
        if cause:
            raise CheckpointError(
                f"{path} holds more than tensors ({cause[0]}) and loading it would "
                "run code from the file; if you trust its origin, save its state dict alone with "
                "torch.save(checkpoint['model'], FILE) where it was made"
            ) from error
        raise CheckpointError(_unreadable(path)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(_unreadable(path)) from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise CheckpointError(_unreadable(path)) from error
        raise
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dictionary of weights: "
            "pass a state dict or a checkpoint that has one"
        )
    return content


def _unreadable(path: Path) -> str:
    return (
        f"{path} ({path.stat().st_size:,} bytes) is cut short or no checkpoint: "
        "copy or download it again"
    )


def read_state_dict(path: str | Path) -> StateDict:
    """Reads the weights of a checkpoint: a bare state dict, or its ``state_dict`` or ``model``.

    Averaged weights come first where they are under timm's key, ``state_dict_ema``. Those under
    ``model_ema`` do not count: the figures of who saves them are of the raw ones.

    Raises:
        CheckpointError: As ``read_checkpoint``, or if there are no weights in it.
    """
    content = read_checkpoint(path)
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no weights; its entries are {sorted(map(str, content))[:8]}: "
            "expected tensors, or a 'state_dict' or 'model' of tensors"
        )
    return tensors


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    strict: bool = True,
    ignore: Sequence[str] = (),
    convert: Callable[[nn.Module, StateDict], StateDict] | None = None,
) -> LoadReport:
    """Loads a checkpoint, in the authors' layout or ours, into a model.

    Args:
        model: Model, changed in place; unchanged if this raises.
        path: ``.pth`` or ``.safetensors`` file.
        strict: Whether to raise unless every entry matches.
        ignore: Prefixes of names that need not match, such as ``["head.fc."]`` for fine-tuning to
            other classes. What fits is still loaded.
        convert: Maps the model and the authors' state dict to ours; by default the model's own
            ``convert_state_dict``, if it has one.

    Returns:
        What matched and what did not.

    Raises:
        CheckpointError: If the file cannot be read or, where ``strict``, does not fit the model.
    """
    state_dict = read_state_dict(path)
    convert = convert or getattr(model, "convert_state_dict", None)
    if convert is not None:
        state_dict = convert(model, state_dict)
    report = compare(state_dict, model.state_dict())
    unforgiven = LoadReport(
        report.matched,
        *(
            tuple(n for n in names if not n.startswith(tuple(ignore)))
            for names in (report.missing, report.unexpected)
        ),
        tuple(entry for entry in report.reshaped if not entry[0].startswith(tuple(ignore))),
    )
    if strict and not unforgiven.is_whole:
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {unforgiven}\n"
            "  Is it the checkpoint of another variant or number of classes? Names that may differ "
            "go into `ignore`; strict=False takes what fits"
        )
    model.load_state_dict({name: state_dict[name] for name in report.matched}, strict=False)
    return report


def compare(theirs: StateDict, ours: StateDict) -> LoadReport:
    """Compares names and shapes of a checkpoint's entries with those of a model."""
    shared = [name for name in ours if name in theirs]
    return LoadReport(
        matched=tuple(name for name in shared if theirs[name].shape == ours[name].shape),
        missing=tuple(name for name in ours if name not in theirs),
        unexpected=tuple(name for name in theirs if name not in ours),
        reshaped=tuple(
            (name, tuple(theirs[name].shape), tuple(ours[name].shape))
            for name in shared
            if theirs[name].shape != ours[name].shape
        ),
    )
