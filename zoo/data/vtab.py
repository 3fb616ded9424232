"""VTAB-1k: 19 tasks of 1,000 images to train on (Zhai et al., arXiv 1910.04867)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.registry import DATASETS

from ..errors import ConfigError, DataError
from .classification import ImageDataset, require_folder

__all__ = ["TASKS", "Task", "VTAB1k", "vtab_means"]


class Task(NamedTuple):
    """A task.

    Attributes:
        group: ``"Natural"``, ``"Specialized"`` or ``"Structured"``.
        num_classes: Number of classes.
    """

    group: str
    num_classes: int


TASKS = {
    "caltech101": Task("Natural", 102),
    "cifar": Task("Natural", 100),
    "dtd": Task("Natural", 47),
    "oxford_flowers102": Task("Natural", 102),
    "oxford_iiit_pet": Task("Natural", 37),
    "svhn": Task("Natural", 10),
    "sun397": Task("Natural", 397),
    "patch_camelyon": Task("Specialized", 2),
    "eurosat": Task("Specialized", 10),
    "resisc45": Task("Specialized", 45),
    "diabetic_retinopathy": Task("Specialized", 5),
    "clevr_count": Task("Structured", 8),
    "clevr_dist": Task("Structured", 6),
    "dmlab": Task("Structured", 6),
    "kitti": Task("Structured", 4),
    "dsprites_loc": Task("Structured", 16),
    "dsprites_ori": Task("Structured", 16),
    "smallnorb_azi": Task("Structured", 18),
    "smallnorb_ele": Task("Structured", 9),
}
"""Tasks by the names of their folders."""

SPLITS = ("train800", "val200", "train800val200", "test")


@DATASETS.register_module()
class VTAB1k(ImageDataset):
    """One task, as images and lists on disk.

    ``data_root/<task>/{train800,val200,train800val200,test}.txt``: a line has the path of an image,
    relative to the task's folder, and its label.

    Args:
        data_root: Folder of the tasks.
        pipeline: Transforms; see ``ImageDataset``.
        task: One of ``TASKS``.
        split: ``"train800"`` and ``"val200"`` to choose settings, ``"train800val200"`` to train
            with them, ``"test"``.
        on_corrupt: ``"raise"`` or ``"skip"``; see ``ImageDataset``.

    Raises:
        DataError: If a list is missing, or has a line that is none or a label that is too large.
    """

    def __init__(
        self,
        data_root: str | Path,
        pipeline: Sequence[Any],
        task: str,
        split: str = "train800val200",
        on_corrupt: str = "raise",
    ):
        for name, value, choices in (("task", task, TASKS), ("split", split, SPLITS)):
            if value not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        folder = require_folder(Path(data_root) / task)
        count = TASKS[task].num_classes
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise DataError(f"VTAB-1k's list {path} is missing: a line is `image label`")
        samples = []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            image, _, label = line.strip().rpartition(" ")
            if not line.strip():
                continue
            if not image or not label.isdecimal() or int(label) >= count:
                raise DataError(
                    f"line {number} of {path} is {line!r}, not an image and a label below {count}"
                )
            samples.append((str(folder / image), int(label)))
        if not samples:
            raise DataError(f"VTAB-1k's list {path} is empty: copy it again")
        super().__init__(samples, [str(label) for label in range(count)], pipeline, on_corrupt)


def vtab_means(accuracies: Mapping[str, float]) -> dict[str, float]:
    """Means of the accuracies of all tasks: of each group, of the groups, and of the tasks.

    Args:
        accuracies: Accuracy of each of ``TASKS``.

    Returns:
        ``"Natural"``, ``"Specialized"``, ``"Structured"``, ``"groups"`` and ``"tasks"``.

    Raises:
        DataError: If a task is missing.
    """
    missing = [task for task in TASKS if task not in accuracies]
    if missing:
        raise DataError(f"there is no accuracy of {', '.join(missing)}")
    groups = {
        group: float(np.mean([accuracies[t] for t, task in TASKS.items() if task.group == group]))
        for group in dict.fromkeys(task.group for task in TASKS.values())
    }
    tasks = float(np.mean([accuracies[task] for task in TASKS]))
    return {**groups, "groups": float(np.mean(list(groups.values()))), "tasks": tasks}
