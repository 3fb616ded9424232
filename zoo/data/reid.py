"""Re-identification data as published: Market-1501, DukeMTMC-reID, VeRi-776, MSMT17."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from mmengine.registry import DATASETS
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import ConfigError, DataError
from .checks import check_counts
from .classification import ImageDataset, require_folder

__all__ = ["MSMT17", "DukeMTMCReID", "Market1501", "ReIDDataset", "Sighting", "VeRi776"]

logger = logging.getLogger(__name__)

JUNK = -1
PARTS = {
    "train": ("train",),
    "test": ("query", "gallery"),
    "query": ("query",),
    "gallery": ("gallery",),
}


class Sighting(NamedTuple):
    """An image, who is on it and which camera took it."""

    path: str
    identity: int
    camera: int


class ReIDDataset(ImageDataset):
    """Images of identities by several cameras, told by their names in one folder a part.

    Images of identity -1 (junk: parts of people, false detections) are left out; those of identity
    0 in a gallery (distractors) stay. A sample has ``cameras`` and ``is_query`` beside what
    ``ImageDataset`` gives; ``labels`` count from 0 in training, and are the identities otherwise.

    Args:
        data_root: Folder of the data set, with the folders and files of its archive.
        split: ``"train"``; ``"test"``, the queries and then the gallery; ``"query"`` or
            ``"gallery"`` alone.
        pipeline: Transforms; see ``ImageDataset``.
        check: What to do if images or identities are not as many as published: ``"warn"``,
            ``"raise"``, or None for nothing.
        on_corrupt: ``"raise"`` or ``"skip"``; see ``ImageDataset``.

    Attributes:
        version: Name of the data set and version that was recognised.

    Raises:
        DataError: If folders, lists or images are missing, or a file name has no identity.
    """

    NAME: ClassVar[str]
    # Images and identities of each part, without junk, distractors as one identity.
    PUBLISHED: ClassVar[dict[str, tuple[int, int]]]
    TOLERANCE: ClassVar[float] = 0.0
    FOLDERS: ClassVar[dict[str, str]] = {
        "train": "bounding_box_train",
        "query": "query",
        "gallery": "bounding_box_test",
    }

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence[Any],
        split: str = "train",
        check: str | None = "warn",
        on_corrupt: str = "raise",
    ):
        if split not in PARTS:
            raise ConfigError(f"split must be one of {', '.join(PARTS)}; got {split!r}")
        self.root = require_folder(data_root)
        self.split = split
        self.version = self.recognise()
        sightings: list[Sighting] = []
        is_query: list[bool] = []
        for part in PARTS[split]:
            found = [seen for seen in self.find(part) if seen.identity != JUNK]
            self._check(part, found, check)
            sightings += found
            is_query += [part == "query"] * len(found)
        identities = sorted({seen.identity for seen in sightings})
        label_of = {i: i for i in identities}
        if split == "train":
            label_of = {identity: label for label, identity in enumerate(identities)}
        super().__init__(
            [(seen.path, label_of[seen.identity]) for seen in sightings],
            [f"{identity:04d}" for identity in identities] if split == "train" else (),
            pipeline,
            on_corrupt,
        )
        self._cameras = np.array([seen.camera for seen in sightings])
        self._is_query = np.array(is_query)

    @property
    def cameras(self) -> np.ndarray:
        """Camera of each image."""
        return self._cameras

    @property
    def is_query(self) -> np.ndarray:
        """Whether each image is a query."""
        return self._is_query

    def describe(self, index: int) -> dict[str, Any]:
        """Label, camera, whether it is a query, and file name of an image."""
        return {
            **super().describe(index),
            "cameras": torch.tensor(self._cameras[index]),
            "is_query": torch.tensor(self._is_query[index]),
        }

    def recognise(self) -> str:
        """Name of the version that is under ``root``."""
        return self.NAME

    def find(self, part: str) -> list[Sighting]:
        """Images of a part: ``"train"``, ``"query"`` or ``"gallery"``; junk, too."""
        return sightings_in(require_folder(self.root / self.FOLDERS[part]))

    def _check(self, part: str, found: Sequence[Sighting], action: str | None) -> None:
        if not found:
            raise DataError(f"no images of {self.version} for its {part} under {self.root}")
        counts = {
            f"images of {part}": len(found),
            f"identities of {part}": len({seen.identity for seen in found}),
        }
        published = dict(zip(counts, self.PUBLISHED[part], strict=True))
        if check_counts(self.version, counts, published, action, self.TOLERANCE):
            logger.info("%s is complete: %s", self.version, counts)


def sightings_in(folder: Path) -> list[Sighting]:
    """Images of a folder, named by identity and camera first, as ``0002_c1s1_000451_03.jpg``.

    Raises:
        DataError: If an image is named otherwise.
    """
    sightings = []
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not name.lower().endswith(IMG_EXTENSIONS):
            continue
        match = re.match(r"(-?\d+)_c(\d+)", name)
        if match is None:
            raise DataError(
                f"{folder / name} names no identity and camera: rename it as IDENTITY_cCAMERA_*, "
                "such as 0002_c1s1_000451_03.jpg, or remove it"
            )
        sightings.append(Sighting(str(folder / name), int(match[1]), int(match[2])))
    return sightings


@DATASETS.register_module()
class Market1501(ReIDDataset):
    """Market-1501 (Zheng et al., ICCV 2015), and whatever has its layout; see ``ReIDDataset``.

    ``data_root/{bounding_box_train,query,bounding_box_test}/0002_c1s1_000451_03.jpg``.
    """

    NAME = "Market-1501"
    PUBLISHED = {"train": (12_936, 751), "query": (3_368, 750), "gallery": (15_913, 751)}


@DATASETS.register_module()
class DukeMTMCReID(ReIDDataset):
    """DukeMTMC-reID (Zheng et al., ICCV 2017); see ``ReIDDataset``.

    ``data_root/{bounding_box_train,query,bounding_box_test}/0001_c2_f0046182.jpg``.
    """

    NAME = "DukeMTMC-reID"
    PUBLISHED = {"train": (16_522, 702), "query": (2_228, 702), "gallery": (17_661, 1_110)}


@DATASETS.register_module()
class VeRi776(ReIDDataset):
    """VeRi-776 (Liu et al., ECCV 2016), of vehicles; see ``ReIDDataset``.

    ``data_root/image_{train,query,test}/0001_c001_00016450_0.jpg``. Copies of the training set
    differ by a few dozen images.
    """

    NAME = "VeRi-776"
    PUBLISHED = {"train": (37_778, 576), "query": (1_678, 200), "gallery": (11_579, 200)}
    TOLERANCE = 0.002
    FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}


@DATASETS.register_module()
class MSMT17(ReIDDataset):
    """MSMT17 (Wei et al., CVPR 2018), both versions; see ``ReIDDataset``.

    ``data_root/{train,test}/0000/0000_000_01_0303morning_0015_0.jpg`` of version 1, in version 2
    ``mask_train_v2`` and ``mask_test_v2``, and ``list_{train,val,query,gallery}.txt`` of both, a
    path and an identity a line. Training has those of ``list_val.txt``, too. Faces are blurred in
    version 2, which has the same lists, so that figures of the two do not compare; they are told
    apart by their folders, links resolved.

    Args:
        version: ``"V1"`` or ``"V2"`` to raise where the other one is found; None to take either.
        **kwargs: Of ``ReIDDataset``.
    """

    NAME = "MSMT17"
    PUBLISHED = {"train": (32_621, 1_041), "query": (11_659, 3_060), "gallery": (82_161, 3_060)}
    LISTS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train", "val"),
        "query": ("query",),
        "gallery": ("gallery",),
    }

    def __init__(self, *args: Any, version: str | None = None, **kwargs: Any):
        if version not in (None, "V1", "V2"):
            raise ConfigError(f"version must be 'V1', 'V2' or None; got {version!r}")
        self._wanted = version
        super().__init__(*args, **kwargs)

    def recognise(self) -> str:
        """``"MSMT17 V1"`` or ``"MSMT17 V2"``, by the names of the folders."""
        self._folders = {name.lower(): self.root / name for name in os.listdir(self.root)}
        masked = [
            "mask" in path.resolve().name.lower()
            for key in ("train", "test", "mask_train_v2", "mask_test_v2")
            if (path := self._folders.get(key)) is not None and path.is_dir()
        ]
        if len(masked) != 2 or len(set(masked)) != 1:
            raise DataError(
                f"{self.root} is no MSMT17: expected the folders train and test (V1), or "
                "mask_train_v2 and mask_test_v2 (V2), and not some of both"
            )
        found = "V2" if masked[0] else "V1"
        if self._wanted not in (None, found):
            raise DataError(
                f"{self.root} is MSMT17 {found}, not {self._wanted}, whose faces are "
                f"{'visible' if self._wanted == 'V1' else 'blurred'}: put that one there, or set "
                f"version={found!r}"
            )
        return f"{self.NAME} {found}"

    def find(self, part: str) -> list[Sighting]:
        """Images of a part, as its lists have them."""
        kind = "train" if part == "train" else "test"
        folder = self._folders.get(kind) or self._folders[f"mask_{kind}_v2"]
        present = {
            entry.path
            for parent in os.scandir(folder)
            if parent.is_dir()
            for entry in os.scandir(parent)
        }
        sightings = []
        for name in self.LISTS[part]:
            sightings += self._read_list(self.root / f"list_{name}.txt", folder)
        missing = [seen.path for seen in sightings if seen.path not in present]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(sightings)} images of {self.version} are missing, such as "
                f"{missing[0]}: unpack the archive again"
            )
        return sightings

    def _read_list(self, path: Path, folder: Path) -> list[Sighting]:
        if not path.is_file():
            raise DataError(f"{self.version} has no {path}: it is part of the authors' archive")
        sightings = []
        for line in path.read_text().splitlines():
            match = re.fullmatch(r"(\S*?\d+_\d+_(\d+)_\S*)\s+(\d+)", line.strip())
            if match:
                name, camera, identity = match.groups()
                sightings.append(Sighting(str(folder / name), int(identity), int(camera)))
            elif line.strip():
                raise DataError(f"{path} has the line {line!r}, not a path of MSMT17 and a number")
        return sightings
