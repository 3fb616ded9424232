"""Results written to a folder: pictures, maps of pixels, and one JSON file."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image

from ..files import replacing
from .drawing import draw
from .images import open_image
from .predictors import Predictor
from .results import Failure, Panoptic, Result, Segmentation


def save_results(
    predictor: Predictor, results: Iterable[Result], folder: str | Path, pictures: bool = True
) -> Iterator[Result]:
    """Writes results as they come, and hands them on.

    ``predictions.json`` is a list with an entry an image, in their order. Beside it there are, an
    image, ``NAME.jpg`` with the result drawn and, of segmentations, ``NAME_map.png`` with the
    numbers of classes or of segments.

    Args:
        predictor: What they are of.
        results: Results of images that are files.
        folder: Folder, made if need be.
        pictures: Whether to draw.

    Raises:
        UserError: If nothing can be written there.
    """
    folder = Path(folder)
    entries, taken = [], set()
    try:
        for result in results:
            entry = result.to_json()
            entries.append(entry)
            if not isinstance(result, Failure):
                name = free_name(Path(result.path).stem, taken)
                if isinstance(result, (Segmentation, Panoptic)):
                    entry["map"] = f"{name}_map.png"
                    save_image(PIL.Image.fromarray(_to_png(result.map)), folder / entry["map"])
                if pictures:
                    entry["picture"] = f"{name}.jpg"
                    drawn = draw(
                        open_image(result.path), result, predictor.names, predictor.palette
                    )
                    save_image(drawn, folder / entry["picture"])
            yield result
    finally:
        # What was predicted before an error is worth keeping.
        with replacing(folder / "predictions.json") as path:
            path.write_text(json.dumps(entries, indent=1))


def _to_png(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.uint8 if numbers.max(initial=0) <= 255 else np.uint16)


def save_image(image: PIL.Image.Image, path: Path) -> None:
    """Writes an image; what was there survives a failure."""
    with replacing(path) as temporary:
        image.save(temporary, **({"quality": 92} if path.suffix == ".jpg" else {}))


def free_name(stem: str, taken: set[str]) -> str:
    """The stem, with a number where it is taken; adds it to what is."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name
