"""Classification data in folders, one folder a class."""

import logging
import os
import warnings
from collections.abc import Sequence
from multiprocessing import Value
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ..errors import ConfigError, DataError
from .transforms import to_byte_tensor

logger = logging.getLogger(__name__)


class ImageDataset(Dataset):
    """Labelled image files; data sets derive from it by finding them.

    A sample is a dictionary of ``inputs`` (bytes, (3, H, W)), ``labels`` (index of the class) and
    ``paths`` (file name).

    Args:
        samples: File name and label of each image.
        classes: Names of the classes in the order of their labels.
        pipeline: Transforms, each a configuration for the ``TRANSFORMS`` registry or a callable;
            see ``visattn.zoo.data.transforms``.
        on_corrupt: What to do about an image that cannot be read: ``"raise"``, or ``"skip"``: log
            it, count it in ``num_skipped`` and give the next readable image in its place.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str | Path, int]],
        classes: Sequence[str],
        pipeline: Sequence[Any],
        on_corrupt: str = "raise",
    ):
        if on_corrupt not in ("raise", "skip"):
            raise ConfigError(f"on_corrupt must be 'raise' or 'skip'; got {on_corrupt!r}")
        self.classes = list(classes)
        # Arrays instead of lists: a forked worker that counts references would copy these pages.
        self._paths = np.array([os.fsencode(path) for path, _ in samples])
        self._labels = np.array([label for _, label in samples])
        self.on_corrupt = on_corrupt
        self.transforms = [TRANSFORMS.build(t) if isinstance(t, dict) else t for t in pipeline]
        self._num_skipped = Value("q", 0)

    @property
    def metainfo(self) -> dict[str, Any]:
        """Class names under ``"classes"``."""
        return {"classes": tuple(self.classes)}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that the pipeline states, or None where it states none."""
        sizes = [t.img_size for t in self.transforms if hasattr(t, "img_size")]
        return sizes[-1] if sizes else None

    @property
    def num_skipped(self) -> int:
        """How often an unreadable image was replaced so far, in all loader processes."""
        return self._num_skipped.value

    @property
    def labels(self) -> np.ndarray:
        """Label of each image."""
        return self._labels

    def path(self, index: int) -> str:
        """File name of an image."""
        return os.fsdecode(self._paths[index].item())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")  # which ends a loop over the images
        index, image = self._read(index % len(self))
        for transform in self.transforms:
            image = transform(image)
        return {"inputs": to_byte_tensor(image), **self.describe(index)}

    def describe(self, index: int) -> dict[str, Any]:
        """What a sample holds beside the image."""
        return {"labels": torch.tensor(self._labels[index]), "paths": self.path(index)}

    def _read(self, index: int) -> tuple[int, Image.Image]:
        """The image at an index, or the first readable one after it, with its own index."""
        for candidate in (i % len(self) for i in range(index, index + len(self))):
            try:
                return candidate, read_image(self.path(candidate))
            except DataError as error:
                if self.on_corrupt == "raise":
                    raise
                with self._num_skipped.get_lock():
                    self._num_skipped.value += 1
                    logger.warning("skipped (%d so far): %s", self._num_skipped.value, error)
        raise DataError(f"none of the {len(self)} images can be read, such as {self.path(0)}")


@DATASETS.register_module()
class ImageFolder(ImageDataset):
    """Images in folders, ``data_root/<class>/**/<image>``, as ImageNet is laid out.

    Args:
        data_root: Folder of class folders, or several that together make the data set.
        pipeline: Transforms; see ``ImageDataset``.
        classes: Names of the class folders in the order of their labels, or a text file with one a
            line; folders not named are left out. By default all folders, sorted by name.
        on_corrupt: ``"raise"`` or ``"skip"``; see ``ImageDataset``.

    Raises:
        DataError: If a folder is missing or holds no images.
    """

    def __init__(
        self,
        data_root: str | Path | Sequence[str | Path],
        pipeline: Sequence[Any],
        classes: str | Path | Sequence[str] | None = None,
        on_corrupt: str = "raise",
    ):
        roots = [data_root] if isinstance(data_root, (str, Path)) else list(data_root)
        self.roots = [require_folder(root) for root in roots]
        names = _read_classes(classes) if classes else _find_classes(self.roots)
        super().__init__(_find_images(self.roots, names), names, pipeline, on_corrupt)


def read_image(
    path: str | Path,
    remedy: str = "replace or remove it, or set on_corrupt='skip' for the data set",
) -> Image.Image:
    """Reads an image file wholly, as RGB.

    Args:
        path: File.
        remedy: What the error advises.

    Raises:
        DataError: If the file is missing, cut short or no image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.filterwarnings("ignore", message=".*(EXIF|iCCP|Palette images).*")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {path} ({error}): {remedy}") from error


def require_folder(path: str | Path) -> Path:
    """The path, if it is a folder.

    Raises:
        DataError: If it is not; says how to get it where we know.
    """
    path = Path(path)
    if path.is_dir():
        return path
    parts = path.parts
    if "embedded" in parts:
        made = Path(*parts[: parts.index("embedded") + 1])
        remedy = f"make it with `python -m visattn.zoo.data.embedded {made}`"
    else:
        remedy = "put the data there, or give its place with --cfg-options ...data_root=FOLDER"
    raise DataError(f"data folder {path} does not exist: {remedy}")


def _read_classes(classes: str | Path | Sequence[str]) -> list[str]:
    if not isinstance(classes, (str, Path)):
        return list(classes)
    if not Path(classes).is_file():
        raise DataError(f"class list {classes} does not exist: give a text file, one class a line")
    return [line.strip() for line in Path(classes).read_text().splitlines() if line.strip()]


def _find_classes(roots: Sequence[Path]) -> list[str]:
    names = {entry.name for root in roots for entry in os.scandir(root) if entry.is_dir()}
    if not names:
        raise DataError(
            f"no class folders under {', '.join(map(str, roots))}: images go to "
            "FOLDER/<class>/<image>"
        )
    return sorted(names)


def _find_images(roots: Sequence[Path], classes: Sequence[str]) -> list[tuple[str, int]]:
    class_to_index = {name: index for index, name in enumerate(classes)}
    samples = [
        sample
        for root in roots
        for sample in make_dataset(str(root), class_to_index, IMG_EXTENSIONS, allow_empty=True)
    ]
    empty = sorted(set(range(len(classes))) - {label for _, label in samples})
    if empty:
        names = ", ".join(classes[index] for index in empty[:5])
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise DataError(
            f"no images of class {names}{more} under {', '.join(map(str, roots))} (looked for "
            f"{', '.join(IMG_EXTENSIONS)}): add some, remove the folder, or list the classes to "
            "use in `classes`"
        )
    return samples
