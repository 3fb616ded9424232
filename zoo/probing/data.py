"""Data of probes: few images a class, and features read before."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError
from .features import open_features

__all__ = ["FeatureDataset", "FewShot"]


@DATASETS.register_module()
class FewShot(Dataset):
    """Some images of each class of a data set.

    Args:
        dataset: Configuration of the data set, or itself; it tells ``labels``.
        shots: Images a class, or the part of them that is kept, below 1.
        seed: Seed of the choice.

    Raises:
        DataError: If a class has fewer images than that.
    """

    def __init__(self, dataset: Any, shots: float, seed: int = 0):
        if not (0 < shots < 1 or (shots >= 1 and shots == int(shots))):
            raise ConfigError(f"shots must be a whole number, or a part below 1; got {shots}")
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        labels = np.asarray(self.dataset.labels)
        rng = np.random.default_rng(seed)
        chosen = []
        for label in np.unique(labels):
            own = np.flatnonzero(labels == label)
            count = int(shots) if shots >= 1 else max(round(shots * len(own)), 1)
            if count > len(own):
                raise DataError(f"class {label} has {len(own)} images, fewer than shots={count}")
            chosen.append(rng.choice(own, count, replace=False))
        self.indices = np.sort(np.concatenate(chosen))

    @property
    def labels(self) -> np.ndarray:
        """Label of each image."""
        return np.asarray(self.dataset.labels)[self.indices]

    @property
    def metainfo(self) -> dict[str, Any]:
        """That of the data set."""
        return self.dataset.metainfo

    @property
    def image_size(self) -> tuple[int, int] | None:
        """That of the data set."""
        return self.dataset.image_size

    def path(self, index: int) -> str:
        """File name of an image."""
        return self.dataset.path(int(self.indices[index]))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[int(self.indices[index])]


@DATASETS.register_module()
class FeatureDataset(Dataset):
    """Features that ``visattn.zoo.probing.features.cache_features`` wrote, mapped into memory.

    A sample is a dictionary of ``features``, tokens (N, D) by layer, and ``labels``.

    Args:
        folder: Folder of the features.

    Raises:
        DataError: If they are not all there.
    """

    is_random = False

    def __init__(self, folder: str | Path):
        self.record, self.features, self.labels = open_features(folder)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names under ``"classes"``."""
        return {"classes": tuple(self.record["classes"])}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "features": {
                layer: torch.from_numpy(np.array(rows[index]))
                for layer, rows in self.features.items()
            },
            "labels": torch.tensor(self.labels[index]),
        }
