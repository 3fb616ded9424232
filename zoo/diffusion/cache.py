"""Latents and encoded captions on disk: made once, used again only if what makes them is the same.

Latents are kept as the moments of the autoencoder's distribution, so that training draws from it
as it does without a cache.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from numpy.lib.format import open_memmap

from ..errors import ConfigError, DataError, UserError
from ..files import replacing
from ..fingerprint import Fingerprint
from .data import CaptionedBoxes

if TYPE_CHECKING:
    from .model import LatentDiffusion

__all__ = ["CacheHook", "LatentCache", "TextCache", "cache_latents", "cache_text"]

logger = logging.getLogger(__name__)

_PROGRESS, _ROWS = "progress.json", "rows.npy"
DTYPES = ("float16", "float32")


class _Rows:
    """Rows of an array on disk that are written one batch after another.

    Args:
        path: Folder.
        mark: What the rows depend on; rows of another mark are made anew.
        count: Rows in the end.
        dtype: Precision.
    """

    def __init__(self, path: Path, mark: str, count: int, dtype: str):
        self.path, self.mark, self.count, self.dtype = path, mark, count, dtype
        self.done = 0
        try:
            progress = json.loads((path / _PROGRESS).read_text())
            if progress["mark"] == mark:
                rows = np.load(path / _ROWS, mmap_mode="r")
                self.done = progress["done"] if len(rows) == count else 0
        except (OSError, ValueError, KeyError):
            pass

    def write(self, rows: torch.Tensor) -> None:
        """Writes the next rows.

        Raises:
            DataError: If they are not finite in this precision.
            UserError: If the disk has no room for all.
        """
        values = rows.to("cpu", getattr(torch, self.dtype))
        if not values.isfinite().all():
            raise DataError(
                f"rows {self.done} to {self.done + len(values) - 1} of {self.path} are not finite "
                f"in {self.dtype}: set dtype='float32' of the CacheHook"
            )
        if self.done == 0:
            self._make(tuple(values.shape[1:]))
        file = open_memmap(self.path / _ROWS, mode="r+")
        file[self.done : self.done + len(values)] = values.numpy()
        file.flush()
        self.done += len(values)
        with replacing(self.path / _PROGRESS) as path:
            path.write_text(json.dumps({"mark": self.mark, "done": self.done}))

    def _make(self, shape: tuple[int, ...]) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.mkdir(parents=True)
            needed = self.count * int(np.prod(shape)) * np.dtype(self.dtype).itemsize
            free = shutil.disk_usage(self.path).free
            if needed > free:
                raise UserError(
                    f"{self.path} needs {needed / 1e9:,.1f} GB and there are {free / 1e9:,.1f} GB "
                    "free: set folder of the CacheHook to another disk, or its latents or text to "
                    "False"
                )
            rows = (self.count, *shape)
            open_memmap(self.path / _ROWS, mode="w+", dtype=self.dtype, shape=rows).flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def read(self) -> np.ndarray:
        """All rows, mapped read-only.

        Raises:
            DataError: If some are missing.
        """
        if self.done < self.count:
            raise DataError(f"{self.path} has {self.done} of {self.count} rows: make them again")
        return np.load(self.path / _ROWS, mmap_mode="r")


class LatentCache:
    """Moments of the latents of a data set's images.

    Args:
        rows: Of each bucket.
        dataset: Data set.
    """

    def __init__(self, rows: Sequence[np.ndarray | None], dataset: CaptionedBoxes):
        self.rows = list(rows)
        self.bucket_of = dataset.bucket_of
        self.row_of = np.zeros(len(dataset), np.int64)
        for bucket in np.unique(self.bucket_of):
            own = np.flatnonzero(self.bucket_of == bucket)
            self.row_of[own] = np.arange(len(own))

    def __call__(self, index: int) -> torch.Tensor:
        """Moments (2 * channels, h, w) of an image."""
        row = self.rows[self.bucket_of[index]][self.row_of[index]]
        return torch.from_numpy(np.array(row, np.float32))


class TextCache:
    """Encoded captions.

    Args:
        texts: Captions.
        rows: Their last hidden states, (N, L, D).
    """

    def __init__(self, texts: Sequence[str], rows: np.ndarray):
        self.place = {text: index for index, text in enumerate(texts)}
        self.rows = rows

    def __contains__(self, text: str) -> bool:
        return text in self.place

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """States (n, L, D) of captions that are there."""
        rows = self.rows[[self.place[text] for text in texts]]
        return torch.from_numpy(np.array(rows, np.float32))


def cache_latents(
    model: "LatentDiffusion",
    dataset: CaptionedBoxes,
    folder: str | Path,
    dtype: str = "float16",
    batch_size: int = 8,
) -> LatentCache:
    """Makes the latents of a data set, but those that are there.

    Args:
        model: Model, whose autoencoder makes them.
        dataset: Data set without random crops.
        folder: Where a folder for each bucket is made.
        dtype: Precision on disk: ``"float16"`` or ``"float32"``.
        batch_size: Images at a time.

    Raises:
        ConfigError: If crops are random.
        DataError: If an image cannot be read, or a latent is not finite.
        UserError: If they cannot be written.
    """
    if dataset.random_crop:
        raise ConfigError(
            "latents cannot be cached of random crops: set random_crop=False in "
            "train_dataloader.dataset, or latents=False of the CacheHook"
        )
    weights = Fingerprint()
    weights.add_state(model.vae.state_dict())
    rows = []
    for bucket, (width, height) in enumerate(dataset.buckets):
        own = np.flatnonzero(dataset.bucket_of == bucket)
        if not len(own):
            rows.append(None)
            continue
        mark = Fingerprint()
        mark.add([str(weights), dict(model.vae.config), width, height, dtype])
        for index in own:
            mark.add_file(dataset.path(index))
        file = _Rows(Path(folder) / f"latents_{width}x{height}", str(mark), len(own), dtype)
        if file.done < len(own):
            logger.info("Encoding %d images into %s", len(own) - file.done, file.path)
        for batch in _batches(own[file.done :].tolist(), batch_size):
            images = torch.stack([dataset[index]["image"] for index in batch])
            file.write(model.encode_images(images.to(model.vae.device)))
        rows.append(file.read())
    return LatentCache(rows, dataset)


def cache_text(
    model: "LatentDiffusion",
    dataset: CaptionedBoxes,
    folder: str | Path,
    dtype: str = "float16",
    batch_size: int = 64,
) -> TextCache:
    """Encodes all captions of a data set, but those that are there; see ``cache_latents``.

    Raises:
        ConfigError: If the text encoder is trained.
    """
    if model.trains_text:
        raise ConfigError("captions cannot be cached while their encoder is trained")
    texts = {""}
    for record in dataset.records:
        texts.update(record.captions, record.box_captions)
    texts = sorted(texts)
    mark = Fingerprint()
    mark.add([texts, model.tokenizer.model_max_length, dtype])
    mark.add(model.tokenizer.get_vocab())
    mark.add_state(model.text_encoder.state_dict())
    file = _Rows(Path(folder) / "text", str(mark), len(texts), dtype)
    if file.done < len(texts):
        logger.info("Encoding %d captions into %s", len(texts) - file.done, file.path)
    for batch in _batches(texts[file.done :], batch_size):
        file.write(model.encode_text(batch))
    return TextCache(texts, file.read())


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@HOOKS.register_module()
class CacheHook(Hook):
    """Has a model train from cached latents and captions, which it makes before, where missing.

    Args:
        folder: Where they are kept.
        latents: Whether latents are; crops must not be random then.
        text: Whether captions are.
        dtype: Precision on disk: ``"float16"`` or ``"float32"``.
        batch_size: Images at a time.
    """

    def __init__(
        self,
        folder: str = "cache/diffusion",
        latents: bool = True,
        text: bool = True,
        dtype: str = "float16",
        batch_size: int = 8,
    ):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
        self.folder, self.latents, self.text = Path(folder), latents, text
        self.dtype, self.batch_size = dtype, batch_size

    def before_train(self, runner: Any) -> None:
        """Makes and opens them; one process makes, and all read."""
        model, dataset = runner.bare_model, runner.train_loop.dataloader.dataset
        dataset = getattr(dataset, "dataset", dataset)  # out of what seeds samples
        if is_main_process():
            self._open(model, dataset)
        barrier()
        if not is_main_process():
            self._open(model, dataset)

    def _open(self, model: "LatentDiffusion", dataset: CaptionedBoxes) -> None:
        was_training = model.training
        model.eval()
        if self.text:
            model.cached_text = None
            model.cached_text = cache_text(model, dataset, self.folder, self.dtype)
        if self.latents:
            dataset.latents = None
            dataset.latents = cache_latents(
                model, dataset, self.folder, self.dtype, self.batch_size
            )
        model.train(was_training)
