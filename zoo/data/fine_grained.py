"""Fine-grained recognition as published: birds, cars, aircraft, dogs, flowers and pets."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mmengine.registry import DATASETS
from torchvision import datasets

from ..errors import ConfigError, DataError
from .checks import check_counts
from .classification import ImageDataset, require_folder

__all__ = [
    "CUB200",
    "FGVCAircraft",
    "FineGrainedDataset",
    "Flowers102",
    "NABirds",
    "OxfordPets",
    "StanfordCars",
    "StanfordDogs",
]

# File name and class of each image, and the names of the classes.
Found = tuple[list[tuple[str, int]], list[str]]


class FineGrainedDataset(ImageDataset):
    """A published data set, read from the files of its archive.

    Args:
        data_root: Folder that holds that of the archive, as torchvision has it.
        split: ``"train"`` or ``"test"``; what authors set aside for validation belongs to
            ``"train"``.
        pipeline: Transforms; see ``ImageDataset``.
        check: What to do if images or classes are not as many as published: ``"warn"``,
            ``"raise"``, or None for nothing.
        on_corrupt: ``"raise"`` or ``"skip"``; see ``ImageDataset``.

    Raises:
        DataError: If files are missing or malformed.
    """

    NAME: ClassVar[str]
    FOLDER: ClassVar[str]
    # Images to train and to test, and classes.
    PUBLISHED: ClassVar[tuple[int, int, int]]

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence[Any],
        split: str = "train",
        check: str | None = "warn",
        on_corrupt: str = "raise",
    ):
        if split not in ("train", "test"):
            raise ConfigError(f"split must be 'train' or 'test'; got {split!r}")
        self.root = require_folder(Path(data_root) / self.FOLDER)
        try:
            samples, classes = self.find(split)
        except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.NAME} under {self.root} cannot be read ({type(error).__name__}: {error}): "
                "unpack its archives there"
            ) from error
        missing = [path for path, _ in samples if not os.path.isfile(path)]
        if missing or not samples:
            raise DataError(
                f"{len(missing)} of {len(samples)} images of {self.NAME} are missing"
                f"{f', such as {missing[0]}' if missing else ''}: unpack its archive again"
            )
        train, test, count = self.PUBLISHED
        check_counts(
            self.NAME,
            {f"images to {split}": len(samples), "classes": len({y for _, y in samples})},
            {f"images to {split}": train if split == "train" else test, "classes": count},
            check,
        )
        super().__init__(samples, classes, pipeline, on_corrupt)

    def find(self, split: str) -> Found:
        """Images and classes of a split."""
        raise NotImplementedError


def _table(path: Path) -> dict[str, str]:
    """A file of two columns, the second of which may have blanks."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())


class _Birds(FineGrainedDataset):
    """Tables of images, classes and splits, by a key of the image."""

    def find(self, split: str) -> Found:
        images, labels, in_training, names = (
            _table(self.root / f"{name}.txt")
            for name in ("images", "image_class_labels", "train_test_split", "classes")
        )
        order = sorted(set(labels.values()), key=int)
        index = {key: i for i, key in enumerate(order)}
        wanted = str(int(split == "train"))
        samples = [
            (str(self.root / "images" / path.strip()), index[labels[key]])
            for key, path in images.items()
            if in_training[key].strip() == wanted
        ]
        return samples, [names[key].strip() for key in order]


@DATASETS.register_module()
class CUB200(_Birds):
    """CUB-200-2011 (Wah et al., 2011): 200 birds; see ``FineGrainedDataset``.

    ``data_root/CUB_200_2011/{images,images.txt,image_class_labels.txt,train_test_split.txt,
    classes.txt}``.
    """

    NAME, FOLDER, PUBLISHED = "CUB-200-2011", "CUB_200_2011", (5_994, 5_794, 200)


@DATASETS.register_module()
class NABirds(_Birds):
    """NABirds (Van Horn et al., CVPR 2015): 555 birds; see ``FineGrainedDataset``.

    ``data_root/nabirds`` with the files of CUB-200-2011. Its numbers of classes, of a hierarchy,
    have gaps.
    """

    NAME, FOLDER, PUBLISHED = "NABirds", "nabirds", (23_929, 24_633, 555)


def _listed(dataset: Any) -> list[tuple[str, int]]:
    """Samples of a data set of torchvision's whose loader gives back the path."""
    return [(os.fspath(path), int(label)) for path, label in dataset]


@DATASETS.register_module()
class StanfordCars(FineGrainedDataset):
    """Stanford Cars (Krause et al., 2013): 196 cars; see ``FineGrainedDataset``.

    ``data_root/stanford_cars/{cars_train,cars_test,devkit,cars_test_annos_withlabels.mat}``.
    """

    NAME, FOLDER, PUBLISHED = "Stanford Cars", "stanford_cars", (8_144, 8_041, 196)

    def find(self, split: str) -> Found:
        """Images and classes of a split."""
        cars = datasets.StanfordCars(self.root.parent, split, loader=_same)
        return _listed(cars), list(cars.classes)


@DATASETS.register_module()
class FGVCAircraft(FineGrainedDataset):
    """FGVC-Aircraft (Maji et al., 2013): 100 variants; see ``FineGrainedDataset``.

    ``data_root/fgvc-aircraft-2013b/data/{images,images_variant_trainval.txt,...}``.
    """

    NAME, FOLDER, PUBLISHED = "FGVC-Aircraft", "fgvc-aircraft-2013b", (6_667, 3_333, 100)

    def find(self, split: str) -> Found:
        """Images and classes of a split."""
        part = {"train": "trainval"}.get(split, split)
        aircraft = datasets.FGVCAircraft(self.root.parent, part, loader=_same)
        return _listed(aircraft), list(aircraft.classes)


@DATASETS.register_module()
class Flowers102(FineGrainedDataset):
    """Oxford Flowers-102 (Nilsback and Zisserman, 2008); see ``FineGrainedDataset``.

    ``data_root/flowers-102/{jpg,imagelabels.mat,setid.mat}``.
    """

    NAME, FOLDER, PUBLISHED = "Oxford Flowers-102", "flowers-102", (2_040, 6_149, 102)

    def find(self, split: str) -> Found:
        """Images and classes of a split."""
        parts = ("train", "val") if split == "train" else ("test",)
        flowers = [datasets.Flowers102(self.root.parent, part, loader=_same) for part in parts]
        return [sample for part in flowers for sample in _listed(part)], list(flowers[0].classes)


@DATASETS.register_module()
class StanfordDogs(FineGrainedDataset):
    """Stanford Dogs (Khosla et al., 2011): 120 breeds; see ``FineGrainedDataset``.

    ``data_root/stanford_dogs/{Images,train_list.mat,test_list.mat}``, the lists also in ``lists``.
    """

    NAME, FOLDER, PUBLISHED = "Stanford Dogs", "stanford_dogs", (12_000, 8_580, 120)

    def find(self, split: str) -> Found:
        """Images and classes of a split."""
        from scipy.io import loadmat

        paths = [self.root / part / f"{split}_list.mat" for part in (".", "lists")]
        content = loadmat(next((p for p in paths if p.is_file()), paths[0]), squeeze_me=True)
        samples, names = [], {}
        for name, label in zip(content["file_list"], content["labels"], strict=True):
            samples.append((str(self.root / "Images" / name), int(label) - 1))
            names[int(label) - 1] = name.split("/")[0].partition("-")[2]
        return samples, [names.get(i, str(i)) for i in range(max(names) + 1)]


@DATASETS.register_module()
class OxfordPets(FineGrainedDataset):
    """Oxford-IIIT Pets (Parkhi et al., CVPR 2012): 37 breeds; see ``FineGrainedDataset``.

    ``data_root/oxford-iiit-pet/{images,annotations/trainval.txt,annotations/test.txt}``.
    """

    NAME, FOLDER, PUBLISHED = "Oxford-IIIT Pets", "oxford-iiit-pet", (3_680, 3_669, 37)

    def find(self, split: str) -> Found:
        """Images and classes of a split."""
        part = {"train": "trainval"}.get(split, split)
        samples, names = [], {}
        for name, columns in _table(self.root / "annotations" / f"{part}.txt").items():
            label = int(columns.split()[0]) - 1
            samples.append((str(self.root / "images" / f"{name}.jpg"), label))
            names[label] = name.rpartition("_")[0].replace("_", " ")
        return samples, [names.get(i, str(i)) for i in range(max(names) + 1)]


def _same(path: Any) -> Any:
    """Stands for reading an image: gives its path."""
    return path
