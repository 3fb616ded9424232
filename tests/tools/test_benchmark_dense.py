"""Benchmarks of detectors and segmentors: what is computed around the clock."""

import csv

import pytest
import torch

from visattn.tools import benchmark
from visattn.zoo.benchmark.counters import count_macs
from visattn.zoo.benchmark.dense import DenseSubject
from visattn.zoo.benchmark.models import benchmark_models
from visattn.zoo.benchmark.subject import Settings
from visattn.zoo.benchmark.summary import dense_table
from visattn.zoo.config import load_config
from visattn.zoo.models import build_configured

CPU = torch.device("cpu")
BRIEF = {"warmup": 0, "iters": 1, "min_time": 0.0, "rounds": 1}


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_inference_and_training_are_measured(dense_config, task):
    config, _ = dense_config(task)
    settings = Settings(CPU, batch_size=2, img_size=(96, 120))
    (row,) = benchmark_models([str(config)], settings, **BRIEF)
    assert row["error"] is None and row["model"] == config.stem
    assert row["infer_img_size"] == row["train_img_size"] == "96x120"
    assert row["infer_p50_ms"] > 0 < row["train_p50_ms"] and row["infer_gmacs"] > 0
    assert row["infer_peak_mib"] > 0 < row["train_peak_mib"]
    params = sum(p.numel() for p in build_configured(load_config(config)).parameters())
    assert row["param_count"] == pytest.approx(params / 1e6, abs=1e-4)


class Head(torch.nn.Module):
    """A part of a model, of maps that are there already."""

    def __init__(self, head, features):
        super().__init__()
        self.head, self.features = head, features

    def forward(self, image):
        return self.head(self.features)


def test_macs_are_those_of_all_parts(dense_config):
    config, _ = dense_config("segmentation")
    subject = DenseSubject(str(config), Settings(CPU, batch_size=1, img_size=(128, 128)))
    model = build_configured(load_config(config))
    image = torch.randn(1, 3, 128, 128)
    backbone = count_macs(model.backbone, image)

    with torch.no_grad():
        head = count_macs(Head(model.decode_head, model.backbone(image)), image)
    assert subject.macs == backbone + head


def test_masks_are_counted_whatever_the_scores(dense_config):
    """Random weights find nothing, but what comes after the proposals runs all the same."""
    config, _ = dense_config("detection")
    settings = Settings(CPU, batch_size=1, img_size=(64, 64))
    whole = DenseSubject(str(config), settings).macs
    config.write_text(config.read_text() + "model['roi_head'] = dict(mask_head=None)\n")
    assert DenseSubject(str(config), settings).macs < 0.8 * whole


def test_pooling_of_regions_is_not_counted(dense_config):
    """By hand: a box head of two layers and its outputs, for each of the proposals."""
    config, _ = dense_config("detection")
    more = "model['roi_head'] = dict(mask_head=None, mask_roi_extractor=None)\n"
    config.write_text(config.read_text() + more)
    subject = DenseSubject(str(config), Settings(CPU, batch_size=1, img_size=(64, 64)))
    network = subject._raw_model
    model, images = network.model, subject._images
    proposals = load_config(config).model.test_cfg.rpn.max_per_img
    with torch.no_grad():
        found = model.rpn_head.predict(model.extract_feat(images), network.samples)[0]
        maps = model.extract_feat(images)
        below = model.backbone(images)
    rest = count_macs(model.backbone, images) + count_macs(Head(model.neck, below), images)
    rest += count_macs(Head(model.rpn_head, maps), images)
    box_head = 7 * 7 * 64 * 256 + 256 * 256 + 256 * 11 + 256 * 40
    assert len(found) <= proposals
    assert subject.macs == rest + len(found) * box_head


def test_images_are_padded_as_the_model_pads_them(dense_config):
    config, _ = dense_config("detection")
    subject = DenseSubject(str(config), Settings(CPU, batch_size=2, img_size=(50, 70)))
    assert subject.img_size == (50, 70) and subject._images.shape == (2, 3, 64, 96)


def test_command_line(dense_config, tmp_path, capsys):
    config, _ = dense_config("segmentation")
    command = [str(config), "--against", f"{config}@reference", "--shape", "64", "96"]
    brief = ["--iters", "1", "--min-time", "0", "--rounds", "1", "--warmup", "0"]
    assert benchmark.main([*command, *brief, "--out", str(tmp_path / "rows")]) == 0
    with open(tmp_path / "rows.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == [config.stem, f"{config.stem}@reference"]
    assert {row["infer_batch_size"] for row in rows} == {"1"}
    assert {row["train_p50_ms"] for row in rows} == {""}
    assert "1.00 x" in capsys.readouterr().out


def test_mistakes_are_named(dense_config, classification_config, tmp_path, capsys):
    config, _ = dense_config("segmentation")
    out = ["--out", str(tmp_path / "rows")]
    assert benchmark.main([str(config), "--model-kwargs", "depth=3", *out]) == 2
    assert "edit the configuration" in capsys.readouterr().err
    assert benchmark.main([str(classification_config), *out]) == 2
    assert "neither detector nor segmentor" in capsys.readouterr().err
    assert benchmark.main(["absent.py", *out]) == 2
    assert "no configuration at absent.py" in capsys.readouterr().err


def test_table_has_a_row_a_recipe(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        "model,infer_img_size,param_count,infer_gmacs,"
        "infer_p20_ms,infer_p50_ms,infer_p80_ms,infer_peak_mib\n"
        "a,800x1333,45.1781,315.52,900.0,1000.0,1234.0,404.93\n"
    )
    assert dense_table(path).splitlines()[2] == (
        "| `a` | 800 x 1333 | 45.18 M | 315.5 | 0.90 / 1.00 / 1.23 | 405 |"
    )
