"""Digests of what cached results depend on."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["Fingerprint"]


class Fingerprint:
    """A digest that grows with all that is added to it."""

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, value: Any) -> None:
        """Adds plain values; others by their text."""
        self._digest.update(json.dumps(value, sort_keys=True, default=str).encode() + b"\0")

    def add_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Adds weights with their names, types and shapes."""
        for name, value in state.items():
            value = value.detach().cpu().contiguous()
            self.add([name, str(value.dtype), list(value.shape)])
            self._digest.update(value.flatten().view(torch.uint8).numpy())

    def add_file(self, path: str | os.PathLike, *more: Any) -> None:
        """Adds a file by name, size and time of change, and what else is said of it."""
        stat = os.stat(path)
        self.add([str(path), stat.st_size, stat.st_mtime_ns, *more])

    def __str__(self) -> str:
        return self._digest.hexdigest()
