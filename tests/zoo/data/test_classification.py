"""Image folders, their transforms and samplers."""

import os
import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from visattn.zoo.data.classification import ImageFolder, read_image
from visattn.zoo.data.samplers import RepeatAugSampler
from visattn.zoo.data.transforms import (
    AlbumentationsTransform,
    TimmEvalTransform,
    TimmTrainTransform,
    to_byte_tensor,
)
from visattn.zoo.errors import ConfigError, DataError

PIPELINE = [{"type": "TimmEvalTransform", "img_size": 16, "crop_pct": 1.0}]


@pytest.fixture
def folder(tmp_path):
    """Three classes with 2, 3 and 4 images, each of one grey level: 10 x class + number."""
    for label, name in enumerate(("ant", "bee", "cat")):
        (tmp_path / name / "nested").mkdir(parents=True)
        for i in range(label + 2):
            place = tmp_path / name / ("nested" if i == 0 else "")
            Image.new("RGB", (20, 24), (10 * label + i,) * 3).save(place / f"{i}.png")
    return tmp_path


def grey(sample) -> int:
    return int(sample["inputs"][0, 8, 8])


def test_samples_have_image_label_and_path(folder):
    dataset = ImageFolder(folder, PIPELINE)
    assert dataset.metainfo == {"classes": ("ant", "bee", "cat")}
    assert len(dataset) == 9
    for index, sample in enumerate(dataset[i] for i in range(9)):
        assert sample["inputs"].shape == (3, 16, 16) and sample["inputs"].dtype == torch.uint8
        assert grey(sample) // 10 == sample["labels"] == dataset.labels[index]
        assert sample["paths"] == dataset.path(index) and os.path.exists(sample["paths"])
    assert dataset.image_size == (16, 16)


def test_a_loop_over_the_images_ends(folder):
    dataset = ImageFolder(folder, PIPELINE)
    assert [grey(sample) for sample in dataset] == [grey(dataset[i]) for i in range(9)]
    assert grey(dataset[-1]) == grey(dataset[8])
    with pytest.raises(IndexError, match="image 9 of 9"):
        dataset[9]


def test_class_list_orders_and_selects(folder):
    (folder / "names.txt").write_text("cat\nant\n")
    for classes in (["cat", "ant"], folder / "names.txt"):
        dataset = ImageFolder(folder, PIPELINE, classes=classes)
        assert Counter(dataset.labels.tolist()) == {0: 4, 1: 2}
        assert dataset.classes == ["cat", "ant"]


def test_several_roots_make_one_data_set(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder / "cat", other / "cat")
    shutil.copytree(folder / "cat", other / "dog")
    dataset = ImageFolder([folder, other], PIPELINE)
    assert dataset.classes == ["ant", "bee", "cat", "dog"]
    assert Counter(dataset.labels.tolist()) == {0: 2, 1: 3, 2: 8, 3: 4}


def test_empty_class_is_named(folder):
    (folder / "dodo").mkdir()
    with pytest.raises(DataError, match="no images of class dodo under .*remove the folder"):
        ImageFolder(folder, PIPELINE)


def test_missing_folders_are_named(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("nothing_here"))
    with pytest.raises(DataError, match="imagenet/train does not exist: put the data there"):
        ImageFolder("data/imagenet/train", PIPELINE)
    with pytest.raises(DataError, match="python -m visattn.zoo.data.embedded data/embedded`"):
        ImageFolder("data/embedded/digits/train", PIPELINE)
    with pytest.raises(DataError, match="no class folders under"):
        ImageFolder(folder / "ant" / "nested", PIPELINE)
    with pytest.raises(DataError, match="class list .*names.txt does not exist"):
        ImageFolder(folder, PIPELINE, classes=folder / "names.txt")


def damage(path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_corrupt_image_is_named(folder, how):
    damage(folder / "bee" / "1.png", how)
    dataset = ImageFolder(folder, PIPELINE)
    (index,) = (i for i in range(9) if dataset.path(i).endswith("bee/1.png"))
    with pytest.raises(DataError, match="cannot read image .*bee/1.png .*on_corrupt='skip'"):
        dataset[index]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_images_are_counted_over_all_processes(folder, num_workers):
    for name in ("bee/1.png", "cat/2.png", "cat/3.png"):
        damage(folder / name, "truncated")
    dataset = ImageFolder(folder, PIPELINE, on_corrupt="skip")
    samples = [
        s for batch in DataLoader(dataset, 3, num_workers=num_workers) for s in batch["paths"]
    ]
    assert len(samples) == 9 and not any("bee/1" in s or "cat/2" in s for s in samples)
    # cat/2 gives way to cat/3, which is corrupt as well.
    assert dataset.num_skipped == 4


def test_replacements_bring_their_own_label(folder):
    for path in (folder / "ant").rglob("*.png"):
        damage(path, "empty")
    dataset = ImageFolder(folder, PIPELINE, on_corrupt="skip")
    assert dataset[0]["labels"] == 1 and grey(dataset[0]) // 10 == 1
    for path in folder.rglob("*.png"):
        damage(path, "empty")
    with pytest.raises(DataError, match="none of the 9 images"):
        dataset[0]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new(mode, (4, 4)).save(path)
    assert read_image(path).mode == "RGB"


@pytest.mark.parametrize("size", [0, -32, (32, 0), (32, 32, 3), 1.5])
@pytest.mark.parametrize("transform", [TimmTrainTransform, TimmEvalTransform])
def test_impossible_image_sizes_are_refused(transform, size):
    with pytest.raises(DataError, match="image size .* is impossible"):
        transform(size)


def test_evaluation_crops_the_centre():
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (16, 16, 48, 48))
    transform = TimmEvalTransform(img_size=(28, 28), crop_pct=0.875)
    out = transform(image)
    expected = image.resize((32, 32), Image.Resampling.BICUBIC).crop((2, 2, 30, 30))
    assert np.array_equal(out.numpy(), np.asarray(expected).transpose(2, 0, 1))


def test_rand_augment_is_random_and_seeded():
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 40, 3), dtype=np.uint8))
    transform = TimmTrainTransform(32, auto_augment="rand-m9-mstd0.5-inc1")

    def draw(seed: int) -> torch.Tensor:
        for module in (random, np.random):
            module.seed(seed)
        torch.manual_seed(seed)
        return transform(image)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (3, 32, 32)


def test_albumentations_follow_the_seed_and_nest():
    transform = AlbumentationsTransform(
        [
            {"type": "RandomResizedCrop", "size": (16, 16)},
            {"type": "OneOf", "transforms": [{"type": "InvertImg", "p": 1.0}], "p": 1.0},
        ]
    )
    image = Image.fromarray(np.random.RandomState(0).randint(0, 99, (40, 40, 3), dtype=np.uint8))
    draws = []
    for seed in (1, 1, 2):
        random.seed(seed)
        draws.append(transform(image))
    assert draws[0].shape == (16, 16, 3) and draws[0].min() > 150
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    with pytest.raises(ConfigError, match="no transform 'Invert'"):
        AlbumentationsTransform([{"type": "Invert"}])


def test_a_pipeline_must_end_with_bytes():
    with pytest.raises(DataError, match="leave normalising"):
        to_byte_tensor(torch.zeros(3, 4, 4))


def test_repeated_augmentation_repeats_each_image():
    sampler = RepeatAugSampler(range(512), seed=3, num_repeats=3)
    counts = Counter(sampler)
    assert len(sampler) == sum(counts.values()) == 512
    assert set(counts.values()) == {3, 2}
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(RepeatAugSampler(range(512), seed=4)) != first
