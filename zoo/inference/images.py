"""Images as users give them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import PIL.Image
from PIL import ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..data.classification import read_image
from ..errors import DataError

Image: TypeAlias = str | Path | PIL.Image.Image | np.ndarray


def open_image(image: Image) -> PIL.Image.Image:
    """An image as RGB, upright.

    Raises:
        DataError: If it cannot be read, or is an array of anything but RGB bytes.
    """
    if isinstance(image, (str, Path)):
        image = read_image(image, remedy="check the path and the file")
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(
                f"an array must be RGB bytes (H, W, 3); got {image.dtype} {image.shape}"
            )
        image = PIL.Image.fromarray(image)
    elif not isinstance(image, PIL.Image.Image):
        raise DataError(f"an image is a path, PIL's or an array; got a {type(image).__name__}")
    return ImageOps.exif_transpose(image).convert("RGB")


def path_of(image: Image) -> str | None:
    """The path of an image that is given by one."""
    return str(image) if isinstance(image, (str, Path)) else None


def find_images(paths: Iterable[str | Path]) -> Iterator[str]:
    """The paths, with the images in them, sorted, in place of folders.

    Raises:
        DataError: If a folder holds no images.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            yield str(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMG_EXTENSIONS)
        if not inside:
            raise DataError(f"no images in {path} (looked for {', '.join(IMG_EXTENSIONS)})")
        yield from map(str, inside)
