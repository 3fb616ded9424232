"""Latents and captions kept on disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from visattn.zoo.diffusion.cache import CacheHook, cache_latents, cache_text
from visattn.zoo.diffusion.data import JsonLines
from visattn.zoo.diffusion.model import LatentDiffusion
from visattn.zoo.errors import ConfigError, DataError, UserError


@pytest.fixture(scope="module")
def model(tiny_folder):
    return LatentDiffusion(pretrained=str(tiny_folder)).eval()


@pytest.fixture
def data(tmp_path):
    """Images of two shapes in two buckets."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(5):
        size = (64, 32) if number % 2 else (32, 32)
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        instance = {"bbox": [0, 0, 20, 20], "caption": f"a red {number % 2}"}
        line = {"image": f"{number}.png", "caption": f"picture {number}", "instances": [instance]}
        lines.append(json.dumps(line))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))

    def make(**kwargs):
        settings = {"size": 32, "buckets": True, "multiple": 8, "random_crop": False}
        return JsonLines(str(tmp_path), **{**settings, **kwargs})

    return make


def test_cached_latents_are_those_of_the_images(model, data, tmp_path):
    dataset = data()
    assert len(set(dataset.bucket_of)) == 2
    cached = cache_latents(model, dataset, tmp_path / "cache", "float32", batch_size=2)
    for index in range(len(dataset)):
        expected = model.encode_images(dataset[index]["image"][None])[0]
        torch.testing.assert_close(cached(index), expected)


def test_what_is_there_is_not_made_again(model, data, tmp_path, monkeypatch):
    first = cache_latents(model, data(), tmp_path / "cache")
    texts = cache_text(model, data(), tmp_path / "cache")
    monkeypatch.setattr(model, "encode_images", lambda images: pytest.fail("encoded again"))
    monkeypatch.setattr(model, "encode_text", lambda captions: pytest.fail("encoded again"))
    assert torch.equal(cache_latents(model, data(), tmp_path / "cache")(3), first(3))
    assert texts(["picture 1"]).equal(cache_text(model, data(), tmp_path / "cache")(["picture 1"]))


def test_a_broken_off_cache_goes_on(model, data, tmp_path, monkeypatch):
    encode, calls = model.encode_images, []

    def failing(images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(model, "encode_images", failing)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(model, data(), tmp_path / "cache", batch_size=2)
    cached = cache_latents(model, data(), tmp_path / "cache", batch_size=2)
    assert sum(calls) - calls[1] == 5
    monkeypatch.setattr(model, "encode_images", encode)
    other = cache_latents(model, data(), tmp_path / "other", batch_size=2)
    assert all(torch.equal(cached(i), other(i)) for i in range(5))


@pytest.mark.parametrize("change", ["image", "weights"])
def test_what_changed_is_made_again(model, data, tmp_path, change):
    before = cache_latents(model, data(), tmp_path / "cache")(0)
    if change == "image":
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "0.png")
        after = cache_latents(model, data(), tmp_path / "cache")(0)
    else:
        with torch.no_grad():
            model.vae.weight.mul_(2)
            after = cache_latents(model, data(), tmp_path / "cache")(0)
            model.vae.weight.div_(2)
    assert not torch.equal(before, after)


def test_captions_that_are_not_there_are_encoded(model, data, tmp_path):
    dataset = data()
    expected = model.encode_text(["picture 2", "a red 1", "", "a stranger"])
    model.cached_text = cache_text(model, dataset, tmp_path / "cache", "float32")
    try:
        assert "a stranger" not in model.cached_text
        torch.testing.assert_close(
            model.encode_text(["picture 2", "a red 1", "", "a stranger"]), expected
        )
        torch.testing.assert_close(model.encode_text(["picture 2"]), expected[:1])
    finally:
        model.cached_text = None


def test_runs_train_from_the_cache(make_run, tmp_path, monkeypatch):
    hook = {"type": "CacheHook", "folder": str(tmp_path / "cache"), "dtype": "float32"}
    changes = {"train_dataloader.dataset.random_crop": False}
    plain = make_run("roictrl", "plain", **changes)
    plain.train()
    cached = make_run("roictrl", "cached", custom_hooks=[hook], **changes)
    cached.train()
    assert (tmp_path / "cache/latents_16x16/rows.npy").is_file()
    losses = [run.message_hub.get_scalar("train/loss").data[0] for run in (plain, cached)]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_what_cannot_be_cached_is_refused(model, data, tiny, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="random_crop=False"):
        cache_latents(model, data(random_crop=True), tmp_path / "cache")
    with pytest.raises(ConfigError, match="while their encoder is trained"):
        cache_text(LatentDiffusion(**tiny), data(), tmp_path / "cache")
    with pytest.raises(ConfigError, match="dtype must be one of float16, float32"):
        CacheHook(dtype="int8")
    monkeypatch.setattr(model, "encode_images", lambda x: torch.full((len(x), 1, 1, 1), 1e9))
    with pytest.raises(DataError, match="not finite in float16"):
        cache_latents(model, data(), tmp_path / "cache")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 10}))
    with pytest.raises(UserError, match="needs .* GB"):
        cache_latents(model, data(), tmp_path / "full", "float32")
