"""Predictions on images, for every task."""

import json

import numpy as np
import PIL.Image
import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

from visattn.zoo import predict
from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.errors import ConfigError, UserError
from visattn.zoo.inference import Failure, load_predictor, predict_each
from visattn.zoo.inference.saving import save_results


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Three images of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for name, shape in (("a", (96, 128)), ("b", (160, 120)), ("c", (80, 80))):
        paths.append(str(folder / f"{name}.png"))
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).resize(shape[::-1]).save(paths[-1])
    return paths


def test_a_classifier_by_name(images, tmp_path):
    model = timm.create_model("test_vit", num_classes=7).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "theirs.pth")
    transform = create_transform(**resolve_model_data_config(model))
    results = predict("test_vit", tmp_path / "theirs.pth", images, batch_size=2, topk=3)
    for path, result in zip(images, results, strict=True):
        with torch.no_grad():
            expected = model(transform(PIL.Image.open(path))[None])[0].softmax(-1).topk(3)
        assert result.classes.tolist() == expected.indices.tolist()
        assert result.labels == [str(i) for i in expected.indices.tolist()]
        np.testing.assert_allclose(result.scores, expected.values, rtol=1e-4)
        assert result.path == path


def test_classes_of_imagenet_have_names(images, tmp_path):
    model = timm.create_model("test_vit")
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.arange(1000).float()
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    (result,) = predict("test_vit", tmp_path / "theirs.pth", images[0], topk=1)
    assert result.classes == [999] and result.labels[0].startswith("toilet tissue")


def test_a_classifier_by_configuration(classification_config, image_folder, tmp_path):
    from visattn.zoo.config import load_config
    from visattn.zoo.models import build_configured

    model = build_configured(load_config(classification_config))
    meta = {"dataset_meta": {"classes": ["blue", "green", "red"]}}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, tmp_path / "run.pth")
    files = sorted((image_folder / "val").rglob("*.png"))
    results = predict(classification_config, tmp_path / "run.pth", files, batch_size=5)
    pixels = np.stack([np.asarray(PIL.Image.open(path)) for path in files])
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.test_step({"inputs": batch})
    for result, scores in zip(results, expected, strict=True):
        best = int(scores["scores"].argmax())
        assert result.labels[0] == ["blue", "green", "red"][best]
        np.testing.assert_allclose(result.scores[0], scores["scores"].max(), rtol=1e-4)


def test_a_detector_as_mmdet_runs_it(dense_config, images):
    # After the configuration, whose reading provides mmcv's operators.
    config, checkpoint = dense_config("detection")
    from mmdet.apis import inference_detector, init_detector
    from mmengine.config import Config

    from visattn.zoo.openmm.auto import resolve_auto

    results = predict(config, checkpoint, images, score_threshold=0.0)
    cfg = resolve_auto(Config.fromfile(config))
    model = init_detector(cfg, str(checkpoint), device="cpu", palette="random")
    for path, result in zip(images, results, strict=True):
        expected = inference_detector(model, path).pred_instances
        assert len(result.labels) == len(expected) > 0
        np.testing.assert_allclose(result.boxes, expected.bboxes, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(result.scores, expected.scores, rtol=1e-3)
        assert (result.masks == expected.masks.numpy()).mean() > 0.999
        assert result.size == result.masks.shape[1:] == PIL.Image.open(path).size[::-1]
    assert set(result.labels) <= {"zero", "one", "two", "three", "four", "five", "six", "seven",
                                  "eight", "nine"}  # fmt: skip


def test_a_segmentor_as_mmseg_runs_it(dense_config, images):
    config, checkpoint = dense_config("segmentation")
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    from visattn.zoo.openmm.auto import resolve_auto

    results = predict(config, checkpoint, images)
    cfg = resolve_auto(Config.fromfile(config))
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline[:1] + [{"type": "PackSegInputs"}]
    model = init_model(cfg, str(checkpoint), device="cpu")
    for path, result in zip(images, results, strict=True):
        expected = inference_model(model, path).pred_sem_seg.data[0].numpy()
        assert (result.map == expected).mean() > 0.999
        assert result.map.shape == PIL.Image.open(path).size[::-1]
        assert sum(result.to_json()["shares"].values()) == pytest.approx(1, abs=1e-3)


def test_arrays_and_open_images_are_taken(dense_config, images):
    config, checkpoint = dense_config("segmentation")
    image = PIL.Image.open(images[0])
    by_path, by_image, by_array = predict(config, checkpoint, [images[0], image, np.asarray(image)])
    assert (by_path.map == by_image.map).all() and (by_path.map == by_array.map).all()
    assert by_array.path is None


def test_images_are_turned_upright(tmp_path, dense_config):
    config, checkpoint = dense_config("segmentation")
    image = PIL.Image.fromarray(np.zeros((64, 96, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    (result,) = predict(config, checkpoint, tmp_path / "turned.jpg")
    assert result.size == result.map.shape == (96, 64)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_bad_images_are_named_and_lose_no_others(dense_config, images, tmp_path, batch_size):
    config, checkpoint = dense_config("detection")
    corrupt = tmp_path / "corrupt.png"
    with open(images[0], "rb") as file:
        corrupt.write_bytes(file.read()[:-200])
    (tmp_path / "text.png").write_text("no image")
    paths = [images[0], corrupt, tmp_path / "absent.png", images[1], tmp_path / "text.png"]
    results = predict(config, checkpoint, paths, batch_size=batch_size)
    assert [isinstance(result, Failure) for result in results] == [False, True, True, False, True]
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Failure):
            assert str(path) in result.error and result.path == str(path)


def test_an_image_that_the_model_cannot_take_fails_alone(images):
    class Picky:
        names, palette = [], None

        def prepare(self, image):
            return image.size

        def predict(self, samples):
            if (80, 80) in samples:
                raise RuntimeError("too square")
            return samples

        def result(self, path, size, output):
            return output

    results = list(predict_each(Picky(), images, batch_size=3))
    assert results[:2] == [(128, 96), (120, 160)]
    assert results[2].error == f"cannot predict on {images[2]}: too square"


def test_mistakes_are_named(dense_config, images, tmp_path):
    config, checkpoint = dense_config("detection")
    with pytest.raises(CheckpointError, match="needs a checkpoint"):
        predict(config, None, images)
    with pytest.raises(UserError, match="did you mean test_vit"):
        predict("test_vitt", None, images)
    with pytest.raises(UserError, match="device cuda:77"):
        predict(config, checkpoint, images, device="cuda:77")
    with pytest.raises(UserError, match="batch_size"):
        predict(config, checkpoint, images, batch_size=0)
    state_dict = torch.load(checkpoint)["state_dict"]
    backbone = {k: v for k, v in state_dict.items() if k.startswith("backbone.")}
    torch.save({"state_dict": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="backbone alone"):
        predict(config, tmp_path / "backbone.pth", images)
    state_dict.pop("roi_head.bbox_head.fc_cls.bias")
    torch.save({"state_dict": state_dict}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match="missing: roi_head.bbox_head.fc_cls.bias"):
        predict(config, tmp_path / "less.pth", images)
    config.write_text(config.read_text() + "test_dataloader = test_evaluator = test_cfg = None\n")
    with pytest.raises(ConfigError, match="no test_dataloader"):
        predict(config, checkpoint, images)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_results_are_written(dense_config, images, tmp_path, task):
    config, checkpoint = dense_config(task)
    predictor = load_predictor(config, checkpoint, score_threshold=0.0)
    paths = [*images, str(tmp_path / "absent.png")]
    results = list(save_results(predictor, predict_each(predictor, paths), tmp_path / "out"))
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["path"] for entry in entries] == paths
    assert "absent.png" in entries[-1]["error"]
    for path, entry, result in zip(images, entries, results, strict=False):
        picture, image = PIL.Image.open(tmp_path / "out" / entry["picture"]), PIL.Image.open(path)
        assert picture.width % image.width == picture.height % image.height == 0
        assert np.abs(np.asarray(picture, int) - image.resize(picture.size)).mean() > 5
        if task == "segmentation":
            assert (np.asarray(PIL.Image.open(tmp_path / "out" / entry["map"])) == result.map).all()
        else:
            from faster_coco_eval import mask as coco

            assert len(entry["boxes"]) == len(entry["scores"]) == len(result.labels)
            assert (coco.decode(entry["masks"][0]) == result.masks[0]).all()
