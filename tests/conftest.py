"""Fixtures that several rooms share."""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
    np.random.seed(0)


def rule_made_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value that the recorded models had under an official key, from the key and its shape."""
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    *path, leaf = key.split(".")
    if leaf == "running_var":
        value = 1 + 0.1 * np.abs(noise)
    elif leaf.startswith("gamma"):
        value = 0.5 + 0.1 * noise
    elif leaf == "weight" and len(shape) >= 2:
        sharpened = {"qkv", "q", "k", "kv", "qk"} & set(path)
        value = (2.0 if sharpened else 0.5) * noise / np.sqrt(np.prod(shape[1:]))
    elif leaf == "weight":
        value = 1 + 0.1 * noise
    elif leaf in ("bias", "running_mean"):
        value = 0.1 * noise
    else:
        value = noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32)).reshape(shape)


def rule_made_state_dict(keys: dict[str, list]) -> dict[str, torch.Tensor]:
    return {
        key: rule_made_tensor(key, tuple(shape)) if "float" in dtype else torch.zeros(shape).long()
        for key, (shape, dtype) in keys.items()
    }


@pytest.fixture(scope="session")
def golden():
    """Reads what an official model has and computes; see tests/goldens/README.md."""

    def read(name: str) -> SimpleNamespace:
        record = json.loads((GOLDENS / f"{name}.json").read_text())
        return SimpleNamespace(
            params=record["params"],
            keys=record["keys"],
            inputs={key: value["input"] for key, value in record["outputs"].items()},
            outputs=dict(np.load(GOLDENS / f"{name}.npz")),
            state_dict=rule_made_state_dict(record["keys"]),
        )

    return read


@pytest.fixture(scope="session")
def golden_image():
    """Standard-normal images of a shape, as the recorded outputs were computed from."""

    def image(shape: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.random.RandomState(0).standard_normal(shape).astype(np.float32))

    return image
