"""What makes it a zoo: checkpoints, data, training glue and the bridge to OpenMMLab."""

from importlib import import_module
from typing import Any

_LAZY = {"register_all": "registry", "attention_maps": "attention", "predict": "inference"}
"""Where what ``visattn.zoo`` offers is, for importing it must stay light."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
