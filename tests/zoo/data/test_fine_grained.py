"""Fine-grained data sets in the layouts of their archives."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from visattn.zoo.data import fine_grained
from visattn.zoo.data.fine_grained import (
    CUB200,
    FGVCAircraft,
    Flowers102,
    NABirds,
    OxfordPets,
    StanfordCars,
    StanfordDogs,
)
from visattn.zoo.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _made_labels(monkeypatch):
    """torchvision compares the labels of the flowers with a digest of the real ones."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def make_cub(root):
    root = root / "CUB_200_2011"
    images = [
        "001.Black_footed_Albatross/a_1.jpg",
        "002.Laysan_Albatross/b_1.jpg",
        "002.Laysan_Albatross/b_2.jpg",
    ]
    for name in images:
        save(root / "images" / name)
    write(root / "images.txt", *(f"{i} {name}" for i, name in enumerate(images, 1)))
    write(root / "image_class_labels.txt", "1 1", "2 2", "3 2")
    write(root / "train_test_split.txt", "1 1", "2 0", "3 1")
    write(root / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")


def make_nabirds(root):
    root = root / "nabirds"
    images = {
        "0000139e-21dc": "0817/0000139e21dc.jpg",
        "0000d9fc-4e02": "0860/0000d9fc4e02.jpg",
        "00019306-9d83": "0860/000193069d83.jpg",
    }
    for name in images.values():
        save(root / "images" / name)
    write(root / "images.txt", *(f"{key} {name}" for key, name in images.items()))
    keys = list(images)
    write(
        root / "image_class_labels.txt",
        *(f"{k} {c}" for k, c in zip(keys, (817, 860, 860), strict=True)),
    )
    write(
        root / "train_test_split.txt", *(f"{k} {s}" for k, s in zip(keys, (1, 1, 0), strict=True))
    )
    # Inner nodes of the hierarchy have names, but no images.
    write(root / "classes.txt", "0 Birds", "817 Oak Titmouse", "860 Lincoln's Sparrow (Adult)")


def make_cars(root):
    root = root / "stanford_cars"
    save(root / "cars_train/00001.jpg")
    save(root / "cars_train/00002.jpg")
    save(root / "cars_test/00001.jpg")
    save(root / "cars_test/00002.jpg")
    fields = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]

    def annotations(labels):
        rows = [(1, label, f"{i:05d}.jpg") for i, label in enumerate(labels, 1)]
        return {"annotations": np.array(rows, dtype=fields)}

    (root / "devkit").mkdir()
    savemat(root / "devkit/cars_train_annos.mat", annotations([2, 1]))
    savemat(root / "cars_test_annos_withlabels.mat", annotations([2, 2]))
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(root / "devkit/cars_meta.mat", {"class_names": names})


def make_aircraft(root):
    root = root / "fgvc-aircraft-2013b" / "data"
    for name in ("0034309", "0034958", "1025794"):
        save(root / f"images/{name}.jpg")
    write(root / "variants.txt", "707-320", "A340-600")
    write(root / "images_variant_trainval.txt", "1025794 707-320", "0034958 A340-600")
    write(root / "images_variant_test.txt", "0034309 A340-600")


def make_dogs(root):
    root = root / "stanford_dogs"
    names = ["n02085620-Chihuahua/n02085620_1.jpg", "n02116738-African_hunting_dog/n02116738_1.jpg"]
    for name in names:
        save(root / "Images" / name)
    cells = np.array([[name] for name in names], dtype=object)
    savemat(root / "train_list.mat", {"file_list": cells, "labels": np.array([[1], [2]])})
    (root / "lists").mkdir()
    savemat(root / "lists/test_list.mat", {"file_list": cells, "labels": np.array([[1], [2]])})


def make_flowers(root):
    root = root / "flowers-102"
    for i in range(1, 7):
        save(root / f"jpg/image_{i:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 1, 1, 2]])})
    savemat(root / "setid.mat", {"trnid": [[1, 3]], "valid": [[2, 4]], "tstid": [[5, 6]]})


def make_pets(root):
    root = root / "oxford-iiit-pet"
    for name in ("Abyssinian_100", "american_bulldog_12", "Abyssinian_7"):
        save(root / f"images/{name}.jpg")
    write(root / "annotations/trainval.txt", "Abyssinian_100 1 1 1", "american_bulldog_12 2 2 1")
    write(root / "annotations/test.txt", "Abyssinian_7 1 1 1")


# Labels to train and to test, and the first names of classes.
SETS = {
    CUB200: (make_cub, [0, 1], [1], ["001.Black_footed_Albatross", "002.Laysan_Albatross"]),
    NABirds: (make_nabirds, [0, 1], [1], ["Oak Titmouse", "Lincoln's Sparrow (Adult)"]),
    StanfordCars: (
        make_cars,
        [1, 0],
        [1, 1],
        ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"],
    ),
    FGVCAircraft: (make_aircraft, [0, 1], [1], ["707-320", "A340-600"]),
    StanfordDogs: (make_dogs, [0, 1], [0, 1], ["Chihuahua", "African_hunting_dog"]),
    Flowers102: (
        make_flowers,
        [1, 1, 0, 0],
        [0, 1],
        ["pink primrose", "hard-leaved pocket orchid"],
    ),
    OxfordPets: (make_pets, [0, 1], [0], ["Abyssinian", "american bulldog"]),
}
each = pytest.mark.parametrize("cls", SETS, ids=lambda cls: cls.__name__)


@each
def test_splits_are_read_with_their_labels(cls, tmp_path):
    make, train_labels, test_labels, names = SETS[cls]
    make(tmp_path)
    for split, labels in (("train", train_labels), ("test", test_labels)):
        data = cls(tmp_path, [], split, check=None)
        assert data.labels.tolist() == labels
        sample = data[0]
        assert sample["inputs"].shape == (3, 8, 8) and int(sample["labels"]) == labels[0]
    assert cls(tmp_path, [], check=None).metainfo["classes"][:2] == tuple(names)


@each
def test_other_counts_than_published_are_said(cls, tmp_path):
    SETS[cls][0](tmp_path)
    found = len(SETS[cls][1])
    with pytest.raises(
        DataError, match=rf"{found} images to train \(not {cls.PUBLISHED[0]:,}\), 2 classes"
    ):
        cls(tmp_path, [], check="raise")


@each
def test_what_is_missing_is_named(cls, tmp_path):
    with pytest.raises(DataError, match=f"{cls.FOLDER} does not exist"):
        cls(tmp_path, [])
    (tmp_path / cls.FOLDER).mkdir()
    with pytest.raises(DataError, match=f"{cls.NAME} under .* cannot be read"):
        cls(tmp_path, [])
    (tmp_path / cls.FOLDER).rmdir()
    SETS[cls][0](tmp_path)
    for path in (tmp_path / cls.FOLDER).rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match=r"(\d) of \1 images of .* are missing, such as"):
        cls(tmp_path, [], check=None)


def test_unknown_splits_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="split must be"):
        CUB200(tmp_path, [], "val")


def test_published_counts_are_those_of_the_papers():
    counts = {name: getattr(fine_grained, name).PUBLISHED for name in ("CUB200", "StanfordCars")}
    assert counts == {"CUB200": (5994, 5794, 200), "StanfordCars": (8144, 8041, 196)}
