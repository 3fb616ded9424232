"""Predictions on images by any model of the zoo, for every task.

from visattn.zoo import predict

for result in predict("configs/detection/nat/CONFIG.py", "epoch_36.pth", ["street.jpg"]):
    print(result.labels, result.scores, result.boxes)
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ..errors import UserError
from .images import Image, open_image, path_of
from .predictors import Predictor, load_predictor
from .results import Classification, Detection, Failure, Panoptic, Result, Segmentation

__all__ = [
    "Classification",
    "Detection",
    "Failure",
    "Panoptic",
    "Predictor",
    "Result",
    "Segmentation",
    "load_predictor",
    "predict",
    "predict_each",
]


def predict(
    config_or_name: str | Path,
    checkpoint: str | Path | None,
    images: Image | Iterable[Image],
    device: str | torch.device | None = None,
    batch_size: int = 1,
    topk: int = 5,
    score_threshold: float = 0.3,
) -> list[Result]:
    """Predicts on images, with the model and the test pipeline of a configuration, or of timm.

    Args:
        config_or_name: Configuration of any task, or timm's name of a classifier.
        checkpoint: Weights, of a run or the authors'; None for those that timm itself has.
        images: An image or several: a path, an image of PIL's, or an array of RGB bytes (H, W, 3).
        device: Where to run; the accelerator by default, if there is one.
        batch_size: Images that go through the model together.
        topk: Classes of a classification.
        score_threshold: Least score of a detected instance.

    Returns:
        A result an image, in their order. An image that cannot be read, or that the model does not
        take, gives a ``Failure`` that says why; the others are predicted all the same.

    Raises:
        UserError: If the model cannot be built, or the checkpoint does not fit it.
    """
    if not isinstance(images, (list, tuple, Iterator)):
        images = [images]
    predictor = load_predictor(config_or_name, checkpoint, device, topk, score_threshold)
    return list(predict_each(predictor, images, batch_size))


def predict_each(
    predictor: Predictor, images: Iterable[Image], batch_size: int = 1
) -> Iterator[Result]:
    """Predicts on images as they come; see ``predict``."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}")
    batch: list[Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield from _predict_batch(predictor, batch)
            batch = []
    if batch:
        yield from _predict_batch(predictor, batch)


def _predict_batch(predictor: Predictor, images: list[Image]) -> list[Result]:
    results: list[Result | None] = [None] * len(images)
    prepared = {}
    for index, image in enumerate(images):
        try:
            pixels = open_image(image)
            prepared[index] = (pixels.size, predictor.prepare(pixels))
        except UserError as error:
            results[index] = Failure(path_of(image), None, str(error))
        except Exception as error:
            # Transforms of every library may be in the pipeline.
            results[index] = _failure(path_of(image), pixels.size, error)
    for group in (list(prepared), *([index] for index in prepared)):
        group = [index for index in group if results[index] is None]
        if not group:
            continue
        try:
            outputs = predictor.predict([prepared[index][1] for index in group])
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory with {len(group)} images at once: lower batch_size"
            ) from error
        except (RuntimeError, ValueError, AssertionError) as error:
            # One image may be the reason: each is tried alone before it fails.
            if len(group) == 1:
                index = group[0]
                results[index] = _failure(path_of(images[index]), prepared[index][0], error)
            continue
        for index, output in zip(group, outputs, strict=True):
            width, height = prepared[index][0]
            results[index] = predictor.result(path_of(images[index]), (height, width), output)
    return results


def _failure(path: str | None, size: tuple[int, int], error: Exception) -> Failure:
    cause = (str(error) or type(error).__name__).strip().splitlines()[0]
    what = path or "an image"
    return Failure(path, (size[1], size[0]), f"cannot predict on {what}: {cause}")
