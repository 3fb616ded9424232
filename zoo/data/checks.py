"""Checks of labels before training: what would fail late, or train on nothing, is said at once."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ConfigError, DataError

__all__ = [
    "LabelReport",
    "check_class_labels",
    "check_coco",
    "check_counts",
    "check_dataset",
    "check_masks",
    "declared_classes",
]

logger = logging.getLogger(__name__)

# COCO itself holds a few boxes without area, which its data sets leave out.
TOLERATED = 0.01


@dataclass(frozen=True)
class LabelReport:
    """How often each class occurs.

    Attributes:
        counts: Occurrences by class: images, objects or pixels.
        ignored: Share of labels that take no part in training, from 0 to 1.
        warnings: What is suspicious but can be meant.
    """

    counts: dict[str, int]
    ignored: float = 0.0
    warnings: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        total = max(sum(self.counts.values()), 1)
        lines = [f"{name}: {count:,} ({count / total:.1%})" for name, count in self.counts.items()]
        if self.ignored:
            lines.append(f"ignored: {self.ignored:.1%}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def check_dataset(dataset: Any, model_cfg: Mapping[str, Any]) -> LabelReport | None:
    """Checks the labels of a built data set against a model's configuration.

    Args:
        dataset: ``ImageFolder``, a COCO data set of mmdet, a data set of mmseg, or a wrapper of
            one.
        model_cfg: Configuration of the model; its ``num_classes`` are found wherever they are.

    Returns:
        What was counted, or None for data sets of other kinds.

    Raises:
        DataError: If labels cannot be trained on.
        ConfigError: If parts of the model declare different numbers of classes.
    """
    while hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if hasattr(dataset, "datasets"):
        reports = [check_dataset(part, model_cfg) for part in dataset.datasets]
        return _merge([report for report in reports if report is not None])
    classes = tuple((getattr(dataset, "metainfo", None) or {}).get("classes") or ())
    num_classes = declared_classes(model_cfg)
    if hasattr(dataset, "labels"):
        return check_class_labels(dataset.labels, classes, num_classes)
    if hasattr(dataset, "seg_map_suffix") and hasattr(dataset, "reduce_zero_label"):
        samples = (dataset.get_data_info(index) for index in _spread(len(dataset), 200))
        paths = [sample["seg_map_path"] for sample in samples if sample.get("seg_map_path")]
        return check_masks(
            paths,
            num_classes or len(classes),
            classes,
            ignore_index=dataset.ignore_index,
            reduce_zero_label=dataset.reduce_zero_label,
            label_map=dataset.label_map,
        )
    ann_file = str(getattr(dataset, "ann_file", ""))
    if ann_file.endswith(".json"):
        report = check_coco(ann_file, classes, num_classes)
        _check_files([dataset.get_data_info(index)["img_path"] for index in range(len(dataset))])
        return report
    return None


def declared_classes(model_cfg: Mapping[str, Any]) -> int | None:
    """The ``num_classes`` that a model's configuration declares, wherever it does.

    Raises:
        ConfigError: If it declares several.
    """
    found = dict(_find("num_classes", model_cfg, "model"))
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{key}={value}" for key, value in found.items())
        raise ConfigError(f"parts of the model disagree on num_classes: {listed}")
    return next(iter(found.values()), None)


def _find(key: str, node: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        if node.get(key) is not None:
            yield f"{where}.{key}", node[key]
        children: Iterable[tuple[Any, Any]] = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for name, child in children:
        yield from _find(key, child, f"{where}.{name}")


def check_class_labels(
    labels: Sequence[int] | np.ndarray, classes: Sequence[str] = (), num_classes: int | None = None
) -> LabelReport:
    """Checks class indices (N,) of images.

    Raises:
        DataError: If there are none, or one is outside ``num_classes``.
    """
    labels = np.asarray(labels)
    num_classes = num_classes or len(classes)
    if not len(labels):
        raise DataError("the data set holds no images: check its folder")
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"label {labels[wrong[0]]} of image {wrong[0]} (and {len(wrong) - 1} more) is outside "
            f"0..{num_classes - 1}: set num_classes={labels.max() + 1} or mend the labels"
        )
    return _report(np.bincount(labels, minlength=num_classes), classes, "images")


def check_counts(
    name: str,
    found: Mapping[str, int],
    published: Mapping[str, int],
    action: str | None = "warn",
    tolerance: float = 0.0,
) -> bool:
    """Compares what was counted of a data set with what its authors published.

    Args:
        name: The data set, and version, that was recognised.
        found: Numbers by what was counted, as ``{"images": 12_936}``.
        published: The same of the authors.
        action: What to do where they differ: ``"warn"``, ``"raise"``, or None for nothing.
        tolerance: Share of the published number that may be missing or too many.

    Returns:
        Whether they agree.

    Raises:
        DataError: If they differ and ``action`` is ``"raise"``.
        ConfigError: If ``action`` is none of the three.
    """
    if action not in ("warn", "raise", None):
        raise ConfigError(f"check must be 'warn', 'raise' or None; got {action!r}")
    if all(abs(found[key] - count) <= tolerance * count for key, count in published.items()):
        return True
    counted = ", ".join(f"{found[key]:,} {key} (not {n:,})" for key, n in published.items())
    message = (
        f"this is not {name} as published: it has {counted}. Results do not compare with the "
        "published ones: copy it anew, or set check=None if this is meant"
    )
    if action == "raise":
        raise DataError(message)
    if action == "warn":
        logger.warning(message)
    return False


def check_masks(
    paths: Sequence[str | Path],
    num_classes: int,
    classes: Sequence[str] = (),
    ignore_index: int = 255,
    reduce_zero_label: bool = False,
    label_map: Mapping[int, int] | None = None,
) -> LabelReport:
    """Checks the pixels of semantic masks.

    Args:
        paths: Mask files, one byte or index a pixel.
        num_classes: Classes of the model.
        classes: Names of the classes.
        ignore_index: Label of pixels that take no part.
        reduce_zero_label: Whether 0 is ignored and all other labels count from 1.
        label_map: New labels by old ones, applied after ``reduce_zero_label``.

    Raises:
        DataError: If a mask is missing, unreadable or not of one channel, holds a label outside
            ``num_classes``, or if all pixels are ignored.
    """
    counts = np.zeros(num_classes, np.int64)
    ignored = 0
    for path in paths:
        found = np.bincount(_read_mask(path).ravel(), minlength=256)
        for label in np.flatnonzero(found):
            target = _final_label(int(label), ignore_index, reduce_zero_label, label_map)
            if target == ignore_index:
                ignored += found[label]
            elif target < num_classes:
                counts[target] += found[label]
            else:
                raise DataError(
                    f"mask {path} holds label {label} on {found[label]} pixels, but the model has "
                    f"{num_classes} classes (0..{num_classes - 1}) and ignores {ignore_index}: set "
                    "num_classes, reduce_zero_label or the data set's classes, or mend the mask"
                )
    if not counts.sum():
        raise DataError(
            f"no pixel of {len(paths)} masks has a label to train on: all are {ignore_index}; "
            "check reduce_zero_label and ignore_index"
        )
    return _report(counts, classes, "pixels", ignored / (ignored + counts.sum()))


def _read_mask(path: str | Path) -> np.ndarray:
    try:
        mask = np.asarray(Image.open(path))
    except (OSError, SyntaxError) as error:
        raise DataError(f"cannot read mask {path} ({error}): replace it") from error
    if mask.ndim != 2:
        raise DataError(
            f"mask {path} has {mask.shape[-1]} channels: save labels as one byte a pixel (modes L "
            "or P), not as colours"
        )
    return mask.astype(np.int64)


def _final_label(
    label: int, ignore_index: int, reduce_zero_label: bool, label_map: Mapping[int, int] | None
) -> int:
    if reduce_zero_label and label != ignore_index:
        label = ignore_index if label == 0 else label - 1
    return (label_map or {}).get(label, label)


def check_coco(
    ann_file: str | Path,
    classes: Sequence[str] = (),
    num_classes: int | None = None,
    image_dir: str | Path | None = None,
) -> LabelReport:
    """Checks the objects of a COCO file.

    Args:
        ann_file: ``instances_*.json``.
        classes: Names of the classes to train; all categories of the file by default.
        num_classes: Classes of the model.
        image_dir: Folder of the images, to look for missing ones.

    Raises:
        DataError: If the file is missing or malformed; lacks a class; belongs to another number of
            classes; or if its objects refer to unknown images or categories, have no mask, or lie
            outside their images (more than 1 % of them; fewer are a warning).
    """
    content = _read_coco(ann_file)
    names = {category["id"]: category["name"] for category in content["categories"]}
    classes = tuple(classes) or tuple(names.values())
    absent = [name for name in classes if name not in names.values()]
    if absent:
        raise DataError(
            f"{ann_file} has no category {absent[0]!r}; it has {', '.join(names.values())}: set "
            "the data set's metainfo.classes to names among them"
        )
    if num_classes is not None and num_classes != len(classes):
        raise DataError(
            f"the model has {num_classes} classes but {ann_file} is read with {len(classes)} "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}): set num_classes="
            f"{len(classes)}"
        )
    images = {image["id"]: image for image in content["images"]}
    if image_dir is not None:
        _check_files([Path(image_dir, image["file_name"]) for image in images.values()])
    # Panoptic files list the segments of an image together.
    objects = [
        segment | {"image_id": item.get("image_id")}
        for item in content["annotations"]
        for segment in item.get("segments_info", [item])
    ]
    if not objects:
        raise DataError(f"{ann_file} holds no objects: annotate some, or check the split")
    counts = dict.fromkeys(classes, 0)
    crowds, faults = 0, []
    for item in objects:
        name = names.get(item.get("category_id"))
        if name is None or item.get("image_id") not in images:
            key = "category_id" if name is None else "image_id"
            raise DataError(
                f"object {item.get('id')} in {ann_file} has {key} {item.get(key)}, which is not in "
                "the file: mend or remove it"
            )
        fault = _fault(item, images[item["image_id"]])
        if fault:
            faults.append(f"object {item.get('id')} of image {item['image_id']} {fault}")
        elif item.get("iscrowd"):
            crowds += 1
        elif name in counts:
            counts[name] += 1
    summary = f"{len(faults)} of {len(objects)} objects in {ann_file} are no good"
    if len(faults) > TOLERATED * len(objects):
        raise DataError(f"{summary}: {faults[0]}; boxes are [left, top, width, height] in pixels")
    warnings = [f"{summary} and will be left out, such as: {faults[0]}"] if faults else []
    empty = len(images.keys() - {item["image_id"] for item in objects})
    if empty:
        warnings.append(f"{empty} of {len(images)} images have no objects")
    report = _report(np.array(list(counts.values())), classes, "objects", crowds / len(objects))
    return LabelReport(report.counts, report.ignored, (*warnings, *report.warnings))


def _read_coco(ann_file: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(ann_file).read_text())
    except OSError as error:
        raise DataError(f"cannot read {ann_file} ({error.strerror}): check the path") from error
    except ValueError as error:
        raise DataError(f"{ann_file} is no JSON ({error}): copy or export it again") from error
    missing = {"images", "annotations", "categories"} - set(content)
    if missing:
        raise DataError(f"{ann_file} has no {', '.join(sorted(missing))}: it is no COCO file")
    return content


def _check_files(paths: Sequence[str | Path]) -> None:
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images are missing, such as {missing[0]}: check "
            "data_root and data_prefix"
        )


def _fault(item: Mapping[str, Any], image: Mapping[str, Any]) -> str | None:
    """What is wrong with the geometry of an object, if anything."""
    box = item.get("bbox")
    if not box or len(box) != 4 or not np.isfinite(box).all():
        return f"has the box {box}"
    left, top, width, height = box
    if width <= 0 or height <= 0:
        return f"has a box without area, {box}"
    shown = (min(left + width, image["width"]) > max(left, 0)) and (
        min(top + height, image["height"]) > max(top, 0)
    )
    if not shown:
        return f"has the box {box} outside its image of {image['width']} x {image['height']}"
    if "segmentation" in item and not item["segmentation"]:
        return "has an empty mask"
    return None


def _report(
    counts: np.ndarray, classes: Sequence[str], unit: str, ignored: float = 0.0
) -> LabelReport:
    names = [classes[i] if i < len(classes) else str(i) for i in range(len(counts))]
    never = [name for name, count in zip(names, counts, strict=True) if not count]
    warnings = []
    if never:
        listed = ", ".join(never[:10]) + (f" and {len(never) - 10} more" if len(never) > 10 else "")
        warnings.append(f"{len(never)} of {len(names)} classes have no {unit}: {listed}")
    if ignored > 0.5:
        warnings.append(f"{ignored:.0%} of the {unit} are ignored")
    return LabelReport(
        dict(zip(names, counts.tolist(), strict=True)), float(ignored), tuple(warnings)
    )


def _merge(reports: Sequence[LabelReport]) -> LabelReport | None:
    if not reports:
        return None
    counts: dict[str, int] = {}
    for report in reports:
        for name, count in report.counts.items():
            counts[name] = counts.get(name, 0) + count
    ignored = float(np.mean([report.ignored for report in reports]))
    return LabelReport(counts, ignored, tuple(w for report in reports for w in report.warnings))


def _spread(length: int, number: int) -> list[int]:
    """At most ``number`` indices, evenly spread over ``length``."""
    return np.unique(np.linspace(0, length - 1, min(length, number)).astype(int)).tolist()
