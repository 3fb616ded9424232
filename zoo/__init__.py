"""What makes it a zoo: checkpoints, data, training glue and the bridge to OpenMMLab."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "register_all":
        from .registry import register_all

        return register_all
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
