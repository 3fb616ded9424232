"""HTA, the benchmark of DAM-VP and TCPA (head-tuning adaptation): its data sets and splits.

Training is on ``"train"``, without ``"val"``; what is chosen is chosen on ``"val"``. The authors'
code has no use for it and reports the best epoch on ``"test"``; and where it draws the two at
random, it draws each by itself, so that they overlap, which they do not here.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image
from torchvision import datasets

from ..errors import ConfigError, DataError
from .classification import ImageDataset, require_folder

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DTD",
    "GTSRB",
    "SVHN",
    "ArrayDataset",
    "Food101",
    "HTADataset",
    "ListedImages",
]

SPLITS = ("train", "val", "trainval", "test")
SHARE = 0.8
"""Share of a published training set that is ``"train"`` where the publishers have no ``"val"``."""
SEED = 3407


def hold_out(count: int, split: str, seed: int | None = None) -> list[int]:
    """Indices of ``"train"``, ``"val"`` or ``"trainval"`` among those of a published training set.

    Args:
        count: Images of the published set.
        split: Which part.
        seed: Order in which the first 80 % are ``"train"``; None for that of the files.
    """
    indices = list(range(count))
    if seed is not None:
        random.Random(seed).shuffle(indices)
    first = int(SHARE * count)
    return {"train": indices[:first], "val": indices[first:], "trainval": indices}[split]


def _same(path: Any) -> Any:
    """Stands for reading an image: gives its path."""
    return path


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(map(repr, SPLITS))}; got {split!r}")


class HTADataset(ImageDataset):
    """A published data set as torchvision reads it, with the benchmark's splits.

    Args:
        data_root: Folder that torchvision takes as ``root``; nothing is downloaded into it.
        pipeline: Transforms; see ``ImageDataset``.
        split: ``"train"``, ``"val"``, ``"trainval"`` (both) or ``"test"``.
        on_corrupt: ``"raise"`` or ``"skip"``; see ``ImageDataset``.

    Raises:
        DataError: If files are missing or malformed.
    """

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence[Any],
        split: str = "train",
        on_corrupt: str = "raise",
    ):
        _check_split(split)
        root = require_folder(data_root)
        try:
            samples, classes = self.find(root, split)
        except (OSError, RuntimeError, ValueError, KeyError, IndexError, EOFError) as error:
            raise DataError(
                f"{type(self).__name__} under {root} cannot be read ({type(error).__name__}: "
                f"{error}): unpack its archive there, in torchvision's layout"
            ) from error
        super().__init__(samples, classes, pipeline, on_corrupt)

    def find(self, root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
        """File names and labels of a split, and names of the classes."""
        raise NotImplementedError


@DATASETS.register_module()
class DTD(HTADataset):
    """Describable Textures (Cimpoi et al., 2014), fold 1: 47 classes; see ``HTADataset``.

    ``data_root/dtd/dtd/{images,labels}``.
    """

    def find(self, root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
        """File names and labels of a split, and names of the classes."""
        parts = ("train", "val") if split == "trainval" else (split,)
        found = [datasets.DTD(root, part, partition=1, loader=_same) for part in parts]
        return [(str(p), y) for part in found for p, y in part], list(found[0].classes)


@DATASETS.register_module()
class Food101(HTADataset):
    """Food-101 (Bossard et al., 2014): 101 classes; see ``HTADataset``.

    ``data_root/food-101/{images,meta}``. ``"train"`` is drawn at random, always the same.
    """

    def find(self, root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
        """File names and labels of a split, and names of the classes."""
        food = datasets.Food101(root, "test" if split == "test" else "train", loader=_same)
        samples = [(str(path), label) for path, label in food]
        if split != "test":
            samples = [samples[i] for i in hold_out(len(samples), split, SEED)]
        return samples, list(food.classes)


@DATASETS.register_module()
class GTSRB(HTADataset):
    """German traffic signs (Houben et al., 2013): 43 classes; see ``HTADataset``.

    ``data_root/gtsrb/{GTSRB/Training,GTSRB/Final_Test/Images,GT-final_test.csv}``. ``"train"`` is
    drawn at random, always the same.
    """

    def find(self, root: Path, split: str) -> tuple[list[tuple[str, int]], list[str]]:
        """File names and labels of a split, and names of the classes."""
        samples = datasets.GTSRB(root, "test" if split == "test" else "train")._samples
        if split != "test":
            samples = [samples[i] for i in hold_out(len(samples), split, SEED)]
        return samples, [f"{label:05d}" for label in range(43)]


class ArrayDataset(ImageDataset):
    """Images that are read into memory at once, with the benchmark's splits; see ``HTADataset``.

    Args:
        data_root: Folder that torchvision takes as ``root``; nothing is downloaded into it.
        pipeline: Transforms; see ``ImageDataset``.
        split: ``"train"`` (the first 80 % of the training set), ``"val"`` (the others),
            ``"trainval"`` or ``"test"``.

    Raises:
        DataError: If files are missing or damaged.
    """

    def __init__(self, data_root: str | Path, pipeline: Sequence[Any], split: str = "train"):
        _check_split(split)
        root, name = require_folder(data_root), type(self).__name__
        part = "test" if split == "test" else "train"
        try:
            images, labels, classes = self.read(root, part)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise DataError(
                f"{name} under {root} cannot be read ({type(error).__name__}: {error}): put the "
                "files of its archive there, in torchvision's layout"
            ) from error
        kept = hold_out(len(images), "trainval" if split == "test" else split)
        self._images = np.ascontiguousarray(images[kept])
        samples = [(f"{name}/{part}/{i}", int(labels[i])) for i in kept]
        super().__init__(samples, classes, pipeline)

    def read(self, root: Path, part: str) -> tuple[np.ndarray, Sequence[int], list[str]]:
        """Images (N, H, W, 3) and labels of ``"train"`` or ``"test"``, and names of the classes."""
        raise NotImplementedError

    def _read(self, index: int) -> tuple[int, Image.Image]:
        return index, Image.fromarray(self._images[index])


class _CIFAR(ArrayDataset):
    SOURCE: ClassVar[type[datasets.CIFAR10]]

    def read(self, root: Path, part: str) -> tuple[np.ndarray, Sequence[int], list[str]]:
        """Images (N, 32, 32, 3), labels and names of the classes."""
        data = self.SOURCE(root, train=part == "train")
        return data.data, data.targets, list(data.classes)


@DATASETS.register_module()
class CIFAR10(_CIFAR):
    """CIFAR-10 (Krizhevsky, 2009): ``data_root/cifar-10-batches-py``; see ``ArrayDataset``."""

    SOURCE = datasets.CIFAR10


@DATASETS.register_module()
class CIFAR100(_CIFAR):
    """CIFAR-100 (Krizhevsky, 2009): ``data_root/cifar-100-python``; see ``ArrayDataset``."""

    SOURCE = datasets.CIFAR100


@DATASETS.register_module()
class SVHN(ArrayDataset):
    """Street view house numbers (Netzer et al., 2011): 10 classes; see ``ArrayDataset``.

    ``data_root/{train,test}_32x32.mat``.
    """

    def read(self, root: Path, part: str) -> tuple[np.ndarray, Sequence[int], list[str]]:
        """Images (N, 32, 32, 3), labels and names of the classes."""
        data = datasets.SVHN(str(root), part)
        return data.data.transpose(0, 2, 3, 1), data.labels, [str(digit) for digit in range(10)]


@DATASETS.register_module()
class ListedImages(ImageDataset):
    """Images and labels of JSON files, as VPT distributes the splits of fine-grained data sets.

    ``data_root/{train,val,test}.json``, each of file names and numbers of classes, which may begin
    anywhere and have gaps: labels are their places among those of ``train.json``.

    Args:
        data_root: Folder of the JSON files.
        pipeline: Transforms; see ``ImageDataset``.
        split: ``"train"``, ``"val"``, ``"trainval"`` (both) or ``"test"``.
        img_dir: Folder of the images below ``data_root``: ``"images"`` of CUB-200-2011 and NABirds,
            ``"Images"`` of Stanford Dogs, ``""`` of Flowers-102 and Stanford Cars.
        on_corrupt: ``"raise"`` or ``"skip"``; see ``ImageDataset``.

    Raises:
        DataError: If a file is missing or no such list, or has a class that ``train.json`` lacks.
    """

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence[Any],
        split: str = "train",
        img_dir: str = "images",
        on_corrupt: str = "raise",
    ):
        _check_split(split)
        root = require_folder(data_root)
        numbers = sorted({int(number) for number in _read_list(root / "train.json").values()})
        labels = {number: label for label, number in enumerate(numbers)}
        samples = []
        for part in ("train", "val") if split == "trainval" else (split,):
            for name, number in _read_list(root / f"{part}.json").items():
                if int(number) not in labels:
                    raise DataError(
                        f"{root / part}.json has class {number} ({name}), which train.json lacks"
                    )
                samples.append((str(root / img_dir / name), labels[int(number)]))
        super().__init__(samples, [str(number) for number in numbers], pipeline, on_corrupt)


def _read_list(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not content or not all(str(number).isdecimal() for number in content.values()):
            raise ValueError("not file names with numbers of classes")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"cannot read {path} ({error}): get the splits of github.com/KMnP/vpt, a JSON file of "
            "file names and numbers of classes for each"
        ) from error
    return content
