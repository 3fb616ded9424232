"""Images with a caption of the whole and boxes with captions of their own, to train on.

A sample is a dictionary: ``image`` (bytes, (3, H, W)) or ``latents``, ``caption``, ``boxes``
(corners normalised to [0, 1], (n, 4)), ``captions`` (n strings) and ``path``.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from PIL import Image
from torch.utils.data import Dataset, Sampler

from ..data.checks import TOLERATED
from ..data.classification import read_image
from ..data.glyphs import with_article
from ..data.transforms import to_byte_tensor
from ..errors import ConfigError, DataError

__all__ = [
    "BucketBatchSampler",
    "CaptionedBoxes",
    "CocoCaptions",
    "JsonLines",
    "Record",
    "VisualGenome",
    "aspect_buckets",
    "collate_records",
]

_SEPARATOR = "\n"


@dataclass(frozen=True)
class Record:
    """An image and what is said about it.

    Attributes:
        path: Image file.
        size: Width and height in pixels.
        captions: Captions of the whole image, of which training draws one; maybe none.
        boxes: Left, top, right, bottom in pixels, float32 (n, 4).
        described: The n captions of these, one a line.
    """

    path: str
    size: tuple[int, int]
    captions: tuple[str, ...]
    boxes: np.ndarray
    described: str

    @property
    def box_captions(self) -> list[str]:
        """Captions of the boxes."""
        return self.described.split(_SEPARATOR) if len(self.boxes) else []


def make_record(
    path: Path,
    size: Sequence[int],
    captions: Sequence[str],
    instances: Sequence[tuple[Sequence[float], str]],
    where: str,
) -> Record:
    """Checks and packs what is said about an image.

    Args:
        path: Image file.
        size: Width and height.
        captions: Of the whole.
        instances: Corners in pixels and captions.
        where: What messages call it.

    Raises:
        DataError: If a caption is empty, or a box is none or leaves the image.
    """
    texts = [*captions, *(text for _, text in instances)]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: a caption is empty or no text")
    boxes = np.array([box for box, _ in instances], np.float32).reshape(-1, 4)
    wrong = ~(np.isfinite(boxes).all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1))
    outside = ((boxes < -1) | (boxes > np.array([*size, *size]) + 1)).any(1)
    for index in np.flatnonzero(wrong | outside)[:1]:
        raise DataError(
            f"{where}: the box {boxes[index].tolist()} of {instances[index][1]!r} must be left <= "
            f"right and top <= bottom in pixels within the {size[0]}x{size[1]} image"
        )
    described = _SEPARATOR.join(" ".join(text.split()) for _, text in instances)
    clean = tuple(" ".join(text.split()) for text in captions)
    return Record(str(path), (int(size[0]), int(size[1])), clean, boxes, described)


def aspect_buckets(size: int, multiple: int = 64, max_ratio: float = 2.0) -> list[tuple[int, int]]:
    """Widths and heights of about the area ``size * size``, for images of all shapes.

    Args:
        size: Side of the square one.
        multiple: Sides are multiples of it.
        max_ratio: Greatest ratio of the sides.
    """
    found = set()
    for short in range(multiple, size + 1, multiple):
        long = size * size // short // multiple * multiple
        if long <= max_ratio * short:
            found |= {(short, long), (long, short)}
    return sorted(found)


class CaptionedBoxes(Dataset):
    """Records as samples; data sets derive from it by reading records.

    Images are resized to cover their bucket and cropped to it; boxes of which less than half is
    left, or which are small, are dropped.

    Args:
        records: Records.
        size: Side of square images, or of the square that buckets have the area of.
        buckets: Whether images keep their shape, roughly; see ``aspect_buckets``.
        multiple: Sides of buckets are multiples of it.
        training: Whether captions of the whole and the order of boxes are random.
        random_crop: Whether crops are, too, in training; those of cached latents cannot be.
        caption_dropout: How often all captions of a sample are empty, in training.
        min_side: Boxes narrower or lower than this part of a side are dropped.
        max_instances: Boxes of a sample, at most; in training others each time.

    Raises:
        DataError: If there is no record, or no box at all.
    """

    def __init__(
        self,
        records: Sequence[Record],
        size: int = 512,
        buckets: bool = False,
        multiple: int = 64,
        training: bool = True,
        random_crop: bool = True,
        caption_dropout: float = 0.1,
        min_side: float = 1 / 32,
        max_instances: int = 30,
    ):
        if not any(len(record.boxes) for record in records):
            raise DataError(f"{type(self).__name__}: no box in {len(records)} images")
        self.records = list(records)
        self.buckets = aspect_buckets(size, multiple) if buckets else [(size, size)]
        if not self.buckets:
            raise ConfigError(f"no buckets of area {size}x{size} have sides of {multiple}n")
        self.training, self.caption_dropout = training, caption_dropout
        self.random_crop = training and random_crop
        self.min_side, self.max_instances = min_side, max_instances
        self.latents: Callable[[int], torch.Tensor] | None = None
        """Moments of the latents of an image in place of the image; see ``cache``."""
        ratios = np.log([width / height for width, height in self.buckets])
        own = np.log([record.size[0] / record.size[1] for record in self.records])
        self.bucket_of = np.abs(own[:, None] - ratios).argmin(1)
        """Index of each image's bucket."""

    def __len__(self) -> int:
        return len(self.records)

    def path(self, index: int) -> str:
        """File name of an image."""
        return self.records[index].path

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        record, size = self.records[index], self.buckets_for(index)
        window = self._window(record.size, size)
        shifted = (record.boxes - np.tile(window[:2], 2)) / np.tile(window[2:] - window[:2], 2)
        sample = {"path": record.path, **self.text(record, shifted.astype(np.float32))}
        if self.latents is not None:
            return {"latents": self.latents(index), **sample}
        image = read_image(record.path)
        if image.size != record.size:
            raise DataError(
                f"{record.path} is {image.width}x{image.height} and its annotation says "
                f"{record.size[0]}x{record.size[1]}: are they of the same data set?"
            )
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS, tuple(window))
        return {"image": to_byte_tensor(image), **sample}

    def buckets_for(self, index: int) -> tuple[int, int]:
        """Width and height of the samples of an image."""
        return self.buckets[self.bucket_of[index]]

    def text(self, record: Record, boxes: np.ndarray) -> dict[str, Any]:
        """Captions and boxes of a sample.

        Args:
            record: Record.
            boxes: Its boxes in the sample, normalised, (n, 4).
        """
        whole = np.clip(boxes, 0, 1)
        sides, before = whole[:, 2:] - whole[:, :2], boxes[:, 2:] - boxes[:, :2]
        visible = sides.prod(1) >= 0.5 * before.prod(1)
        kept = np.flatnonzero(visible & (sides >= self.min_side).all(1))
        captions, described = record.captions, record.box_captions
        caption = captions[0] if captions else ""
        if self.training:
            kept = np.random.permutation(kept)[: self.max_instances]
            if captions:
                caption = captions[np.random.randint(len(captions))]
        kept = kept[: self.max_instances]
        own = [described[i] for i in kept]
        if not captions:
            caption = ", ".join(own)
        if self.training and np.random.random() < self.caption_dropout:
            caption, own = "", [""] * len(own)
        return {"caption": caption, "boxes": torch.from_numpy(whole[kept]), "captions": own}

    def _window(self, whole: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
        """Corners (4,), in pixels of an image, of the crop that becomes a sample of a size."""
        sides = np.array(whole, np.float64)
        crop = np.array(size) * (sides / size).min()
        start = (sides - crop) * (np.random.random(2) if self.random_crop else 0.5)
        return np.concatenate([start, np.minimum(start + crop, sides)])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"there is no annotation file {path}") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error


def _in_folder(data_root: str, name: str | None) -> Path | None:
    return None if name is None else Path(data_root) / name


@DATASETS.register_module()
class CocoCaptions(CaptionedBoxes):
    """COCO's instances and captions; a box's caption is its category, unless it has its own.

    Args:
        data_root: Folder of the data set.
        ann_file: Instances, below it; an annotation may have a ``caption``.
        caption_file: Captions of the images, below it; by default those of the boxes, listed.
        data_prefix: ``img``, the folder of the images below ``data_root``.
        **kwargs: Of ``CaptionedBoxes``.

    Raises:
        DataError: If files are missing or do not fit each other.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str = "annotations/instances_train2017.json",
        caption_file: str | None = "annotations/captions_train2017.json",
        data_prefix: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        folder = Path(data_root) / (data_prefix or {"img": "train2017/"})["img"]
        path = Path(data_root) / ann_file
        captions = _in_folder(data_root, caption_file)
        super().__init__(_read_coco(path, captions, folder), **kwargs)


def _read_coco(path: Path, caption_path: Path | None, folder: Path) -> list[Record]:
    content = _read_json(path)
    try:
        names = {c["id"]: with_article(c["name"]) for c in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        instances, captions = defaultdict(list), defaultdict(list)
        empty = 0
        for item in content["annotations"]:
            left, top, width, height = item["bbox"]
            if item["image_id"] not in images:
                raise DataError(f"{path}: annotation {item['id']} is of no image there")
            if item.get("iscrowd"):
                continue
            empty += width <= 0 or height <= 0
            text = item.get("caption", names.get(item["category_id"]))
            if text is None:
                raise DataError(
                    f"{path}: annotation {item['id']} has the category {item['category_id']}, "
                    "which is not among the categories"
                )
            box = (left, top, left + max(width, 0), top + max(height, 0))
            instances[item["image_id"]].append((box, text))
        if empty > TOLERATED * len(content["annotations"]):
            raise DataError(
                f"{path}: {empty} boxes have no area: are they corners in place of left, top, "
                "width, height?"
            )
        for item in _read_json(caption_path)["annotations"] if caption_path else ():
            captions[item["image_id"]].append(item["caption"])
        return [
            make_record(
                folder / image["file_name"],
                (image["width"], image["height"]),
                captions[key],
                instances[key],
                f"{path}, image {key}",
            )
            for key, image in images.items()
        ]
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not laid out as COCO's files: {error!r}") from error


@DATASETS.register_module()
class VisualGenome(CaptionedBoxes):
    """Visual Genome's regions, whose phrases are captions of boxes.

    The images have no caption; that of a sample lists the captions of its boxes.

    Args:
        data_root: Folder of the data set.
        ann_file: ``region_descriptions.json``, below it.
        image_file: ``image_data.json``, below it, with sizes and addresses, which the names of the
            files below ``data_root`` are the last two parts of: ``VG_100K/1.jpg``.
        max_phrases: Captions that the caption of the whole lists.
        **kwargs: Of ``CaptionedBoxes``.

    Raises:
        DataError: If files are missing or do not fit each other.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str = "region_descriptions.json",
        image_file: str = "image_data.json",
        max_phrases: int = 3,
        **kwargs: Any,
    ):
        self.max_phrases = max_phrases
        root = Path(data_root)
        super().__init__(_read_regions(root / ann_file, root / image_file, root), **kwargs)

    def text(self, record: Record, boxes: np.ndarray) -> dict[str, Any]:
        """Captions and boxes of a sample; see the base class."""
        sample = super().text(record, boxes)
        first = [text for text in sample["captions"][: self.max_phrases] if text]
        return {**sample, "caption": ", ".join(first)}


def _read_regions(path: Path, image_path: Path, root: Path) -> list[Record]:
    try:
        images = {
            image["image_id"]: (
                root.joinpath(*Path(image["url"]).parts[-2:]),
                (image["width"], image["height"]),
            )
            for image in _read_json(image_path)
        }
        records = []
        for entry in _read_json(path):
            where = f"{path}, image {entry['id']}"
            if entry["id"] not in images:
                raise DataError(f"{where}: it is not in {image_path}")
            file, size = images[entry["id"]]
            instances = []
            for region in entry["regions"]:
                if not region["phrase"].strip():
                    continue
                corners = np.array([region["x"], region["y"]] * 2, np.float32)
                corners[2:] += (region["width"], region["height"])
                # Some regions of the release leave their images.
                instances.append((np.clip(corners, 0, [*size, *size]), region["phrase"]))
            records.append(make_record(file, size, (), instances, where))
        return records
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not laid out as Visual Genome's: {error!r}") from error


@DATASETS.register_module()
class JsonLines(CaptionedBoxes):
    """One record a line: ``{"image": "a.jpg", "caption": "...", "instances": [{"bbox": [x1, y1,
    x2, y2], "caption": "..."}]}``, boxes in pixels.

    Args:
        data_root: Folder of the data set, which names of images are below.
        ann_file: File of records, below it.
        **kwargs: Of ``CaptionedBoxes``.

    Raises:
        DataError: If the file is missing, or a line is no such record.
    """

    def __init__(self, data_root: str, ann_file: str = "train.jsonl", **kwargs: Any):
        super().__init__(_read_lines(Path(data_root) / ann_file, Path(data_root)), **kwargs)


def _read_lines(path: Path, root: Path) -> list[Record]:
    if not path.is_file():
        raise DataError(f"there is no annotation file {path}")
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            unknown = sorted(entry.keys() - {"image", "caption", "instances", "width", "height"})
            if unknown:
                raise DataError(f"{where}: nothing reads the key {unknown[0]!r}")
            file = root / entry["image"]
            if "width" in entry:
                size = entry["width"], entry["height"]
            else:
                size = read_image(str(file)).size
            instances = [(item["bbox"], item["caption"]) for item in entry.get("instances", ())]
            captions = [entry["caption"]] if entry.get("caption") else []
            records.append(make_record(file, size, captions, instances, where))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise DataError(
                f"{where} must be an object with image, caption and instances, each with bbox and "
                f"caption: {error!r}"
            ) from error
    return records


@FUNCTIONS.register_module()
def collate_records(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of samples: images and latents are stacked, the rest are lists."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    for key in batch.keys() & {"image", "latents"}:
        batch[key] = torch.stack(batch[key])
    return batch


@DATA_SAMPLERS.register_module()
class BucketBatchSampler(Sampler):
    """Batches of images of one bucket; those that do not fill one wait for another epoch.

    All processes have as many batches, and see others of the same order.

    Args:
        sampler: Sampler of mmengine's, with ``dataset``, ``seed`` and ``epoch``.
        batch_size: Images in a batch.

    Raises:
        DataError: If no bucket has as many images as a batch.
    """

    def __init__(self, sampler: Any, batch_size: int):
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.world_size = get_dist_info()
        counts = np.bincount(sampler.dataset.bucket_of)
        self.length = int((counts // batch_size).sum()) // self.world_size
        if self.length == 0:
            raise DataError(
                f"no bucket has the {batch_size} images of a batch ({counts.tolist()}): lower "
                "train_dataloader.batch_size or set buckets=False"
            )

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.sampler.seed, self.sampler.epoch])
        of = self.sampler.dataset.bucket_of
        batches = []
        for bucket in np.unique(of):
            order = rng.permutation(np.flatnonzero(of == bucket))
            full = len(order) // self.batch_size * self.batch_size
            batches += order[:full].reshape(-1, self.batch_size).tolist()
        rng.shuffle(batches)
        yield from batches[self.rank : self.length * self.world_size : self.world_size]
