"""The splits of the benchmarks of prompting."""

import csv
import json
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from visattn.zoo.data import hta
from visattn.zoo.data.hta import hold_out
from visattn.zoo.data.transforms import ShortSideTrainTransform
from visattn.zoo.data.vtab import TASKS, VTAB1k, vtab_means
from visattn.zoo.errors import ConfigError, DataError

COUNT = 20


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (value, 0, 0)).save(path)


def make_dtd(root):
    for split in ("train", "val", "test"):
        names = [f"{c}/{c}_{split}_{i}.jpg" for c in ("banded", "dotted") for i in range(3)]
        for name in names:
            save(root / "dtd/dtd/images" / name)
        listed = root / "dtd/dtd/labels" / f"{split}1.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(names) + "\n")


def make_food(root):
    (root / "food-101/meta").mkdir(parents=True)
    for split, count in (("train", COUNT // 2), ("test", 2)):
        names = {c: [f"{c}/{split}{i}" for i in range(count)] for c in ("pie", "soup")}
        for name in sum(names.values(), []):
            save(root / "food-101/images" / f"{name}.jpg")
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(names))


def make_gtsrb(root):
    for label in range(2):
        for i in range(COUNT // 2):
            save(root / f"gtsrb/GTSRB/Training/{label:05d}/{i}.ppm")
    save(root / "gtsrb/GTSRB/Final_Test/Images/00000.ppm")
    with open(root / "gtsrb/GT-final_test.csv", "w") as file:
        rows = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        rows.writeheader()
        rows.writerow({"Filename": "00000.ppm", "ClassId": 7})


def numbered(count):
    """Images (N, 32, 32, 3) that are told apart by their first pixel."""
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def flat(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def make_cifar10(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = numbered(COUNT + 4)
    parts = [images[i : i + 4] for i in range(0, COUNT + 4, 4)]
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name, part in zip(names, parts, strict=True):
        content = {"data": flat(part), "labels": [int(i[0, 0, 0]) % 10 for i in part]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"c{i}" for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


def make_cifar100(root):
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, images in (("train", numbered(COUNT)), ("test", numbered(4))):
        labels = [int(i[0, 0, 0]) for i in images]
        content = {"data": flat(images), "fine_labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": [f"c{i}" for i in range(100)]}
    (folder / "meta").write_bytes(pickle.dumps(names))


def make_svhn(root):
    root.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", COUNT), ("test", 4)):
        images = numbered(count)
        content = {"X": images.transpose(1, 2, 3, 0), "y": np.arange(count)[:, None] % 10 + 1}
        savemat(root / f"{name}_32x32.mat", content)


def make_listed(root):
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        names = {f"{split}{i}.jpg": str(10 * (i % 2) + 5) for i in range(count)}
        for name in names:
            save(root / "images" / name)
        (root / f"{split}.json").write_text(json.dumps(names))


MAKERS = {
    "DTD": (make_dtd, {"train": 6, "val": 6, "trainval": 12, "test": 6}, 2),
    "Food101": (make_food, {"train": 16, "val": 4, "trainval": 20, "test": 4}, 2),
    "GTSRB": (make_gtsrb, {"train": 16, "val": 4, "trainval": 20, "test": 1}, 43),
    "CIFAR10": (make_cifar10, {"train": 16, "val": 4, "trainval": 20, "test": 4}, 10),
    "CIFAR100": (make_cifar100, {"train": 16, "val": 4, "trainval": 20, "test": 4}, 100),
    "SVHN": (make_svhn, {"train": 16, "val": 4, "trainval": 20, "test": 4}, 10),
    "ListedImages": (make_listed, {"train": 6, "val": 2, "trainval": 8, "test": 2}, 2),
}


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Writes a data set once, and reads a split of it."""
    for module in (datasets.cifar, datasets.svhn):
        # The sums are those of the true files.
        monkeypatch.setattr(module, "check_integrity", lambda *args: True)
    monkeypatch.setattr(datasets.CIFAR10, "_load_meta", load_meta)

    def read(name, split, pipeline=()):
        root = tmp_path / name
        if not root.exists():
            root.mkdir()
            MAKERS[name][0](root)
        return getattr(hta, name)(root, pipeline, split)

    return read


def load_meta(self):
    """torchvision's without the check of the sum."""
    path = f"{self.root}/{self.base_folder}/{self.meta['filename']}"
    with open(path, "rb") as file:
        self.classes = pickle.load(file)[self.meta["key"]]


@pytest.mark.parametrize("name", MAKERS)
def test_splits_are_whole_and_apart(name, read):
    _, counts, classes = MAKERS[name]
    splits = {split: read(name, split) for split in counts}
    assert {split: len(data) for split, data in splits.items()} == counts
    paths = {s: [data.path(i) for i in range(len(data))] for s, data in splits.items()}
    assert not {*paths["train"]} & {*paths["val"]}
    assert {*paths["train"], *paths["val"]} == {*paths["trainval"]}
    assert not {*paths["trainval"]} & {*paths["test"]}
    assert all(len(data.metainfo["classes"]) == classes for data in splits.values())
    again = read(name, "train")
    assert [again.path(i) for i in range(len(again))] == paths["train"]


@pytest.mark.parametrize("name", MAKERS)
def test_samples_have_image_and_label(name, read):
    data = read(name, "test")
    sample = data[0]
    assert sample["inputs"].shape[0] == 3 and sample["inputs"].dtype.is_floating_point is False
    assert sample["labels"] == data.labels[0]
    assert sample["paths"] == data.path(0)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN"])
def test_the_first_part_in_the_order_of_the_files_is_trained_on(name, read):
    for split, expected in (("train", range(16)), ("val", range(16, 20)), ("trainval", range(20))):
        data = read(name, split)
        seen = [int(data[i]["inputs"][0, 0, 0]) for i in range(len(data))]
        assert seen == list(expected)
        shift = 1 if name == "SVHN" else 0  # Its zero is class ten.
        modulo = 100 if name == "CIFAR100" else 10
        assert data.labels.tolist() == [(i + shift) % modulo for i in expected]


def test_random_part_is_of_all_classes(read):
    for name in ("Food101", "GTSRB"):
        assert set(read(name, "train").labels) == {0, 1}


def test_holding_out_is_by_eighty_percent():
    assert len(hold_out(50_000, "train")) == 40_000
    assert hold_out(73_257, "train") == list(range(58_605))
    assert hold_out(10, "train", seed=1) != list(range(8))


def test_numbers_of_classes_may_have_gaps(read):
    data = read("ListedImages", "test")
    assert data.labels.tolist() == [0, 1]
    assert data.metainfo["classes"] == ("5", "15")


@pytest.mark.parametrize("name", MAKERS)
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(DataError, match=f"({name} under|cannot read).*{tmp_path}"):
        getattr(hta, name)(tmp_path, [])


def test_wrong_split_is_named(read):
    with pytest.raises(ConfigError, match="split must be one of 'train', 'val'.*'validation'"):
        read("DTD", "validation")
    with pytest.raises(ConfigError, match="split must be one of"):
        read("SVHN", "validation")


def test_class_that_is_not_trained_is_refused(read, tmp_path):
    read("ListedImages", "train")
    (tmp_path / "ListedImages/test.json").write_text('{"a.jpg": 99}')
    with pytest.raises(DataError, match="test.json has class 99"):
        read("ListedImages", "test")
    (tmp_path / "ListedImages/test.json").write_text('["a.jpg"]')
    with pytest.raises(DataError, match="get the splits of github.com/KMnP/vpt"):
        read("ListedImages", "test")


@pytest.fixture
def vtab(tmp_path):
    folder = tmp_path / "vtab-1k" / "kitti"
    lines = [f"images/train/{i}.png {i % 4}" for i in range(10)]
    for i in range(10):
        save(folder / f"images/train/{i}.png")
    for name, chosen in (
        ("train800", lines[:8]),
        ("val200", lines[8:]),
        ("train800val200", lines),
        ("test", lines[:1]),
    ):
        (folder / f"{name}.txt").write_text("\n".join(chosen) + "\n")
    return folder.parent


def test_lists_of_vtab_are_read(vtab):
    sizes = {"train800": 8, "val200": 2, "train800val200": 10, "test": 1}
    for split, size in sizes.items():
        assert len(VTAB1k(vtab, [], "kitti", split)) == size
    data = VTAB1k(vtab, [], "kitti")
    assert data[9]["labels"] == 1 and data.path(9).endswith("images/train/9.png")
    assert len(data.metainfo["classes"]) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 4", "line 1 of .*not an image and a label below 4"),
        ("a.png", "line 1 of"),
        ("", "is empty"),
    ],
)
def test_bad_lists_of_vtab_are_refused(line, message, vtab):
    (vtab / "kitti/test.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        VTAB1k(vtab, [], "kitti", "test")
    (vtab / "kitti/test.txt").unlink()
    with pytest.raises(DataError, match="test.txt is missing"):
        VTAB1k(vtab, [], "kitti", "test")


def test_wrong_task_is_named(vtab):
    with pytest.raises(ConfigError, match="task must be one of caltech101.*got 'mnist'"):
        VTAB1k(vtab, [], "mnist")
    with pytest.raises(DataError, match="vtab-1k/svhn does not exist"):
        VTAB1k(vtab, [], "svhn")


def test_vtab_has_nineteen_tasks_in_three_groups():
    groups = [task.group for task in TASKS.values()]
    counts = {group: groups.count(group) for group in groups}
    assert counts == {"Natural": 7, "Specialized": 4, "Structured": 8}


def test_means_of_vtab():
    scores = {"Natural": 70.0, "Specialized": 80.0, "Structured": 60.0}
    means = vtab_means({name: scores[task.group] for name, task in TASKS.items()})
    assert means == pytest.approx({**scores, "groups": 70.0, "tasks": (490 + 320 + 480) / 19})
    with pytest.raises(DataError, match="no accuracy of kitti"):
        vtab_means({name: 1.0 for name in TASKS if name != "kitti"})


def test_shorter_side_is_resized_before_the_crop():
    transform = ShortSideTrainTransform(img_size=32, resize=40)
    image = Image.fromarray(
        np.arange(64 * 128 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 128, 3)
    )
    assert transform(image).size == (32, 32)
    with pytest.raises(ConfigError, match="resize=20 leaves no room"):
        ShortSideTrainTransform(img_size=32, resize=20)
