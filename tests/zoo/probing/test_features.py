"""Features on disk are those that would be read, and are read once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, FUNCTIONS, MODELS
from torch.utils.data import default_collate

from visattn.zoo.errors import ConfigError, DataError
from visattn.zoo.probing import features as features_module
from visattn.zoo.probing.data import FeatureDataset, FewShot
from visattn.zoo.probing.features import cache_features, fingerprint, open_features
from visattn.zoo.registry import register_all
from visattn.zoo.training.loops import SeededDataset

register_all()


def build_model(**kwargs):
    torch.manual_seed(0)
    cfg = {
        "type": "Probe",
        "backbone": {"model_name": "test_vit", "img_size": 32},
        "num_classes": 3,
        "heads": {"ep_all": {"num_queries": 4}},
        "layers": (2, 5),
        **kwargs,
    }
    return MODELS.build(cfg)


@pytest.fixture
def images(image_folder):
    return DATASETS.build(
        {
            "type": "ImageFolder",
            "data_root": str(image_folder / "val"),
            "pipeline": [{"type": "TimmEvalTransform", "img_size": 32}],
        }
    )


@pytest.fixture
def cache(images, tmp_path):
    def read(model=None, **kwargs):
        kwargs = {"settings": {"a": 1}, "batch_size": 5, **kwargs}
        dataset = kwargs.pop("dataset", images)
        model = model or build_model()
        return cache_features(
            model, dataset, tmp_path, collate_fn=FUNCTIONS.get("default_collate"), **kwargs
        )

    return read


def count_batches(model):
    seen = []
    model.reader.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_are_what_the_network_gives(cache, images, dtype):
    model = build_model().eval()
    dataset = FeatureDataset(cache(model, dtype=dtype))
    assert len(dataset) == len(images) and dataset.metainfo == images.metainfo
    batch = default_collate([images[i] for i in range(len(images))])
    wanted = model.reader(model.data_preprocessor(batch)["inputs"])
    found = default_collate([dataset[i] for i in range(len(dataset))])
    assert torch.equal(found["labels"], batch["labels"])
    tolerance = {"float32": 1e-5, "float16": 2e-3}[dtype]
    for layer in (2, 5):
        tokens = found["features"][str(layer)].float()
        torch.testing.assert_close(tokens, wanted[layer], rtol=tolerance, atol=tolerance)
    logits = model(**model.data_preprocessor(found))
    for name, value in model(inputs=model.data_preprocessor(batch)["inputs"]).items():
        torch.testing.assert_close(logits[name], value, rtol=10 * tolerance, atol=10 * tolerance)


def test_are_read_once(cache):
    model = build_model()
    seen = count_batches(model)
    assert cache(model) == cache(model)
    assert seen == [5, 5, 2]


CHANGES = {
    "weights": lambda model: model.backbone.blocks[0].norm1.weight.data.mul_(1.0001),
    "normalisation": lambda model: model.data_preprocessor.mean.add_(1),
    "norm": lambda model: setattr(model.reader, "final_norm", True),
    "layer": lambda model: setattr(model.reader, "layers", (2, 4)),
    "tokens": lambda model: setattr(model.reader, "keep", "patch"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_depend_on_the_network(images, change):
    model = build_model()
    before = fingerprint(model, images, {})
    assert fingerprint(build_model(), images, {}) == before
    CHANGES[change](model)
    assert fingerprint(model, images, {}) != before


def test_depend_on_images_settings_and_precision(images, tmp_path, monkeypatch):
    model = build_model()
    marks = [
        fingerprint(model, images, {}),
        fingerprint(model, images, {"pipeline": "other"}),
        fingerprint(model, images, {}, "float16"),
        fingerprint(model, FewShot(images, 2), {}),
    ]
    copy = tmp_path / "touched.png"
    copy.write_bytes(Path(images.path(0)).read_bytes() + b" ")
    original = images.path
    monkeypatch.setattr(images, "path", lambda i: str(copy) if i == 0 else original(i))
    marks.append(fingerprint(model, images, {}))
    assert len(set(marks)) == len(marks)


def test_go_on_where_reading_broke_off(cache, images, monkeypatch):
    whole = open_features(cache(settings={"a": "whole"}))
    original, calls = type(images).__getitem__, []

    def fail(self, index):
        calls.append(index)
        if index == 7 and len(calls) < 9:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(type(images), "__getitem__", fail)
    with pytest.raises(KeyboardInterrupt):
        cache()
    folder = cache()
    assert calls == [*range(8), *range(5, 12)]
    _, found, labels = open_features(folder)
    assert np.array_equal(labels, whole[2])
    for layer, rows in whole[1].items():
        np.testing.assert_allclose(found[layer], rows, rtol=1e-4, atol=1e-5)


def test_start_anew_where_what_is_there_is_damaged(cache):
    folder = cache()
    (folder / "layer2.npy").write_bytes(b"cut short")
    with pytest.raises(DataError, match="no whole features in"):
        FeatureDataset(folder)
    assert cache() == folder
    assert len(FeatureDataset(folder)) == 12


def test_of_a_damaged_record_of_progress_are_read_anew(cache):
    folder = cache()
    (folder / "features.json").unlink()
    (folder / "progress.json").write_text("{")
    assert len(FeatureDataset(cache())) == 12
    assert json.loads((folder / "features.json").read_text())["images"] == 12


def test_that_are_not_finite_are_refused(cache):
    model = build_model()
    model.backbone.blocks[2].mlp.fc2.bias.data[0] = 1e6
    cache(model)
    with pytest.raises(DataError, match="layer 2 are not finite in float16 for images 0 to 4"):
        cache(model, dtype="float16")


def test_that_have_no_room_are_refused_before(cache, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="GB free: set probing.cache_dir"):
        cache()


def test_need_no_seeds(cache):
    """A loader that seeds all generators for each sample leaves them alone."""
    dataset = FeatureDataset(cache())
    seeded, before = SeededDataset(dataset), torch.get_rng_state()
    assert torch.equal(seeded[3, (1, 2)]["features"]["2"], dataset[3]["features"]["2"])
    assert torch.equal(torch.get_rng_state(), before)


class TestFewShot:
    def test_takes_as_many_of_each_class(self, images):
        few = FewShot(images, shots=2, seed=1)
        assert np.bincount(few.labels).tolist() == [2, 2, 2]
        assert [few[i]["labels"].item() for i in range(6)] == few.labels.tolist()
        assert few[3]["paths"] == few.path(3)
        assert not np.array_equal(few.indices, FewShot(images, shots=2, seed=2).indices)
        assert np.array_equal(few.indices, FewShot(images, shots=2, seed=1).indices)

    def test_takes_a_part(self, images):
        assert np.bincount(FewShot(images, shots=0.5).labels).tolist() == [2, 2, 2]

    @pytest.mark.parametrize(
        ("shots", "message"), [(5, "has 4 images, fewer than"), (1.5, "whole number"), (0, "got 0")]
    )
    def test_mistakes(self, images, shots, message):
        with pytest.raises((DataError, ConfigError), match=message):
            FewShot(images, shots=shots)
