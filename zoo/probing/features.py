"""Features of a data set on disk: read once, used again only if nothing that makes them changed."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch.utils.data import DataLoader, Dataset, Subset

from ..errors import DataError, UserError
from ..files import replacing
from ..fingerprint import Fingerprint
from .model import Probe

__all__ = ["cache_features", "fingerprint", "open_features"]

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16")
_RECORD, _PROGRESS, _LABELS = "features.json", "progress.json", "labels.npy"


def fingerprint(
    model: Probe, dataset: Dataset, settings: Mapping[str, Any], dtype: str = "float32"
) -> str:
    """A digest of all that features depend on.

    That is: the network with its weights, what of it is read, normalisation, ``settings``, the
    images by name, size and time of change, their labels, and the precision.

    Args:
        model: Probe whose reader reads the features.
        dataset: Data set with ``path`` and ``labels``.
        settings: Whatever else makes a difference, such as the configurations of data set and
            network; plain values.
        dtype: Precision on disk.
    """
    mark, reader = Fingerprint(), model.reader
    mark.add([settings, dtype, sorted(set(reader.layers)), reader.final_norm, reader.keep])
    mark.add([type(reader.backbone).__qualname__, str(reader.backbone)])
    mark.add_state(reader.backbone.state_dict())
    mark.add_state(dict(model.data_preprocessor.named_buffers()))
    for index, label in enumerate(dataset.labels):
        mark.add_file(dataset.path(index), int(label))
    return str(mark)


def open_features(
    folder: str | Path,
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Their record, features (images, tokens, width) by layer, mapped read-only, and labels.

    Raises:
        DataError: If they are not all there.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / _RECORD).read_text())
        features = {
            layer: np.load(folder / f"layer{layer}.npy", mmap_mode="r")
            for layer in record["layers"]
        }
        labels = np.load(folder / _LABELS)
        shapes = {layer: list(rows.shape) for layer, rows in features.items()}
        if shapes != record["layers"] or len(labels) != record["images"]:
            raise ValueError("their sizes are not as recorded")
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"no whole features in {folder} ({error}): remove the folder and read them again"
        ) from error
    return record, features, labels


def cache_features(
    model: Probe,
    dataset: Dataset,
    folder: str | Path,
    settings: Mapping[str, Any],
    dtype: str = "float32",
    batch_size: int = 64,
    num_workers: int = 0,
    collate_fn: Callable[[list], Any] | None = None,
) -> Path:
    """Reads the features of a data set into a folder, unless they are there.

    Each set of features has a folder of its own, named by its fingerprint. If reading is broken
    off, the next call goes on after the last batch that was written.

    Args:
        model: Probe whose reader reads them.
        dataset: Data set with ``path``, ``labels`` and ``metainfo``.
        folder: Where the folder is made.
        settings: See ``fingerprint``.
        dtype: Precision on disk: ``"float32"`` or ``"float16"``.
        batch_size: Images at a time.
        num_workers: Processes that load images.
        collate_fn: Of the loader.

    Returns:
        The folder, for ``FeatureDataset``.

    Raises:
        DataError: If a feature is not finite, also in the precision on disk.
        UserError: If they cannot be written.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype of features must be one of {', '.join(DTYPES)}; got {dtype!r}")
    mark = fingerprint(model, dataset, settings, dtype)
    folder = Path(folder) / mark[:20]
    try:
        record = open_features(folder)[0]
        if record["fingerprint"] == mark:
            logger.info("Using the features in %s", folder)
            return folder
    except DataError:
        pass
    try:
        _read(model, dataset, folder, mark, dtype, batch_size, num_workers, collate_fn)
    except OSError as error:
        raise UserError(
            f"cannot write features to {folder} ({error.strerror or error}): free some space, set "
            "probing.cache_dir to another disk, or probing.dtype='float16'"
        ) from error
    return folder


def _read(model, dataset, folder, mark, dtype, batch_size, num_workers, collate_fn):
    done, rows = _unfinished(folder, mark)
    if not done:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    logger.info("Reading features of %d images into %s", len(dataset) - done, folder)
    loader = DataLoader(
        Subset(dataset, range(done, len(dataset))),
        batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn,
    )
    reader, was_training = model.reader, model.training
    model.eval()
    for batch in loader:
        with torch.no_grad():
            images = model.data_preprocessor({"inputs": batch["inputs"]})["inputs"]
            read = {str(layer): x.to("cpu") for layer, x in reader(images).items()}
        if rows is None:
            rows = _make_files(folder, read, len(dataset), dtype)
        for layer, features in read.items():
            features = features.to(getattr(torch, dtype))
            if not features.isfinite().all():
                raise DataError(
                    f"features of layer {layer} are not finite in {dtype} for images {done} to "
                    f"{done + len(features) - 1}: check the network's weights, or set "
                    "probing.dtype='float32'"
                )
            rows[layer][done : done + len(features)] = features.numpy()
            rows[layer].flush()
        done += len(batch["inputs"])
        _write_json(folder / _PROGRESS, {"fingerprint": mark, "done": done})
    model.train(was_training)
    np.save(folder / _LABELS, np.asarray(dataset.labels))
    _write_json(
        folder / _RECORD,
        {
            "fingerprint": mark,
            "images": len(dataset),
            "classes": list(dataset.metainfo["classes"]),
            "layers": {layer: list(x.shape) for layer, x in rows.items()},
        },
    )
    (folder / _PROGRESS).unlink()


def _unfinished(folder: Path, mark: str) -> tuple[int, dict[str, np.ndarray] | None]:
    """Images whose features are written already, and the files of these; 0 and None if none."""
    try:
        progress = json.loads((folder / _PROGRESS).read_text())
        if progress["fingerprint"] != mark:
            return 0, None
        rows = {
            path.stem.removeprefix("layer"): open_memmap(path, mode="r+")
            for path in folder.glob("layer*.npy")
        }
        return (progress["done"], rows) if rows else (0, None)
    except (OSError, ValueError, KeyError):
        return 0, None


def _make_files(
    folder: Path, read: dict[str, torch.Tensor], images: int, dtype: str
) -> dict[str, np.ndarray]:
    shapes = {layer: (images, *x.shape[1:]) for layer, x in read.items()}
    needed = sum(np.prod(shape) for shape in shapes.values()) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"features need {needed / 1e9:,.1f} GB and {folder} has {free / 1e9:,.1f} GB free: set "
            "probing.cache_dir to another disk, or train without probing.cached"
        )
    return {
        layer: open_memmap(folder / f"layer{layer}.npy", mode="w+", dtype=dtype, shape=shape)
        for layer, shape in shapes.items()
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content))
