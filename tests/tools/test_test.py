"""Testing detectors and segmentors from the command line."""

import csv
import json
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from _official import official_state_dict

from visattn.tools import test as tool
from visattn.tools import train as train_tool
from visattn.zoo.config import load_config
from visattn.zoo.models import build_configured

TTA = """
tta_model = dict(type="{model}", tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), \
max_per_img=20))
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(160, 160), keep_ratio=True)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations", {annotations})],
            [dict(type="Pack{pack}Inputs", meta_keys=("img_id", "img_path", "ori_shape", \
"img_shape", "scale_factor", "flip", "flip_direction"))],
        ],
    ),
]
"""


def run(config, checkpoint, tmp_path, *options):
    argv = [str(config), str(checkpoint), "--work-dir", str(tmp_path / "work")]
    return tool.evaluate([*argv, *map(str, options)])


@pytest.fixture
def tables(tmp_path):
    def read():
        with open(tmp_path / "report" / "per_class.csv") as file:
            return list(csv.DictReader(file))

    return read


def test_detections_are_saved_drawn_and_reported(dense_config, scenes, tmp_path, tables, capsys):
    config, checkpoint = dense_config("detection")
    options = ["--out", tmp_path / "found.json", "--score-threshold", 0.0]
    options += ["--report", tmp_path / "report", "--show-dir", tmp_path / "pictures"]
    metrics = run(config, checkpoint, tmp_path, *options)

    truth = json.loads((scenes / "annotations" / "instances_val2017.json").read_text())
    boxes = json.loads((tmp_path / "found.bbox.json").read_text())
    assert {entry["image_id"] for entry in boxes} <= {image["id"] for image in truth["images"]}
    assert len(json.loads((tmp_path / "found.segm.json").read_text())) == len(boxes) > 0

    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == len(truth["images"])
    for picture, image in zip(pictures, truth["images"], strict=True):
        width, height = PIL.Image.open(picture).size
        assert width * image["height"] == 2 * height * image["width"]

    rows = tables()
    assert [row["class"] for row in rows] == [c["name"] for c in truth["categories"]]
    assert sum(int(row["count"]) for row in rows) == len(truth["annotations"])
    known = [float(row["bbox_AP"]) for row in rows if row["bbox_AP"]]
    assert np.mean(known) / 100 == pytest.approx(metrics["coco/bbox_mAP"], abs=6e-4)
    assert "segm_AP50" in rows[0] and "mean" in capsys.readouterr().out
    confusion = json.loads((tmp_path / "report" / "confusion.json").read_text())
    assert confusion["rows"][-1] == "background"
    counts = np.array(confusion["matrix"])
    assert counts[:-1].sum() == len(truth["annotations"]) and counts[:, :-1].sum() == len(boxes)
    assert (tmp_path / "report" / "confusion.png").is_file()


def test_segmentations_are_saved_drawn_and_reported(dense_config, scenes, tmp_path, tables):
    config, checkpoint = dense_config("segmentation")
    options = ["--out", tmp_path / "maps", "--report", tmp_path / "report"]
    metrics = run(config, checkpoint, tmp_path, *options, "--show-dir", tmp_path / "pictures")

    maps = sorted((tmp_path / "maps").iterdir())
    truths = sorted((scenes / "stuffthingmaps" / "val2017").iterdir())
    assert [path.name for path in maps] == [path.name for path in truths]
    counts = np.zeros((11, 11), int)
    for found, truth in zip(maps, truths, strict=True):
        pairs = (np.asarray(PIL.Image.open(path)).ravel() for path in (truth, found))
        np.add.at(counts, tuple(pairs), 1)
    confusion = json.loads((tmp_path / "report" / "confusion.json").read_text())
    assert confusion["matrix"] == counts.tolist()
    known = [float(row["iou"]) for row in tables() if row["iou"]]
    assert np.mean(known) == pytest.approx(metrics["mIoU"], abs=0.02)
    assert len(list((tmp_path / "pictures").iterdir())) == len(truths)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_pickles_are_of_any_task(dense_config, tmp_path, task):
    config, checkpoint = dense_config(task)
    run(config, checkpoint, tmp_path, "--out", tmp_path / "found.pkl")
    found = pickle.loads((tmp_path / "found.pkl").read_bytes())
    assert len(found) == 4
    assert ("pred_instances" if task == "detection" else "pred_sem_seg") in found[0]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_augmentation_joins_views(dense_config, tmp_path, task):
    kinds = {
        "detection": ("InstanceTTAModel", "with_bbox=True, with_mask=True", "Det"),
        "segmentation": ("SegTTAModel", "", "Seg"),
    }
    model, annotations, pack = kinds[task]
    more = TTA.format(model=model, annotations=annotations, pack=pack)
    if task == "segmentation":
        more = more.replace(', tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), '
                            'max_per_img=20)', "")  # fmt: skip
    config, checkpoint = dense_config(task, more)
    found = {}
    for switch in ([], ["--tta"]):
        run(config, checkpoint, tmp_path, "--out", tmp_path / "found.pkl", *switch)
        found[bool(switch)] = pickle.loads((tmp_path / "found.pkl").read_bytes())
    plain, joined = found[False], found[True]
    if task == "detection":
        counts = [len(sample["pred_instances"]["scores"]) for sample in joined]
        assert 0 < max(counts) <= 20
        assert any(
            a["pred_instances"]["bboxes"].shape != b["pred_instances"]["bboxes"].shape
            for a, b in zip(plain, joined, strict=True)
        )
    else:
        maps = [sample["pred_sem_seg"]["data"] for sample in joined]
        others = [sample["pred_sem_seg"]["data"] for sample in plain]
        assert any((a != b).any() for a, b in zip(maps, others, strict=True))


def test_flipped_masks_are_turned_back(tmp_path):
    from mmengine.structures import InstanceData

    from visattn.zoo.registry import register_all

    register_all("mmdet")
    from mmdet.structures import DetDataSample
    from mmengine.config import ConfigDict

    from visattn.zoo.openmm.tta import InstanceTTAModel

    mask = torch.zeros(1, 20, 40, dtype=torch.bool)
    mask[:, 2:8, 4:14] = True
    box = torch.tensor([[4.0, 2, 14, 8]])

    def view(flip, score):
        turned = torch.tensor([[40 - 14.0, 2, 40 - 4, 8]]) if flip else box
        sample = DetDataSample()
        sample.set_metainfo(
            {
                "ori_shape": (20, 40),
                "flip": flip,
                "flip_direction": "horizontal" if flip else None,
            }
        )
        sample.pred_instances = InstanceData(
            bboxes=turned,
            scores=torch.tensor([score]),
            labels=torch.tensor([1]),
            masks=mask.flip(-1) if flip else mask,
        )
        return sample

    cfg = ConfigDict(nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=5)

    class Model(torch.nn.Module):
        def test_step(self, data):
            raise NotImplementedError

    model = InstanceTTAModel(cfg, module=Model())
    (merged,) = model.merge_preds([[view(False, 0.6), view(True, 0.9)]])
    found = merged.pred_instances
    assert found.scores.tolist() == pytest.approx([0.9]) and len(found) == 1
    torch.testing.assert_close(found.bboxes, box)
    assert torch.equal(found.masks, mask)


@pytest.mark.parametrize(
    "layout",
    ["theirs", *(pytest.param(form, marks=pytest.mark.slow) for form in ("bare", "safetensors"))],
)
def test_released_layouts_are_tested_as_ours(dense_config, tmp_path, layout):
    from safetensors.torch import save_file

    config, checkpoint = dense_config("segmentation")
    model = build_configured(load_config(config))
    model.load_state_dict(torch.load(checkpoint)["state_dict"])
    theirs = official_state_dict(model, "nat")
    path = tmp_path / f"other.{'safetensors' if layout == 'safetensors' else 'pth'}"
    if layout == "safetensors":
        save_file({key: value.contiguous() for key, value in theirs.items()}, path)
    else:
        meta = {"CLASSES": ["a"] * 11, "epoch": 3}
        torch.save({"meta": meta, "state_dict": theirs} if layout == "theirs" else theirs, path)
    assert run(config, path, tmp_path) == run(config, checkpoint, tmp_path)


def test_released_weights_are_not_resumed(dense_config, tmp_path, capsys):
    config, checkpoint = dense_config("segmentation")
    argv = [str(config), "--work-dir", str(tmp_path / "work"), "--resume", str(checkpoint)]
    assert train_tool.main(argv) == 2
    assert "cannot be resumed" in capsys.readouterr().err


MISTAKES = {
    "out": ("segmentation", ["--out", "maps.json"], "maps.json must end with .pkl, or be a folder"),
    "folder": ("detection", ["--out", "found"], "found must end with .json"),
    "tta": ("detection", ["--tta"], "has no tta_model and no tta_pipeline"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_line(dense_config, tmp_path, mistake, capsys):
    task, options, message = MISTAKES[mistake]
    config, checkpoint = dense_config(task)
    argv = [str(config), str(checkpoint), "--work-dir", str(tmp_path / "work"), *options]
    assert tool.main(argv) == 2
    assert message in capsys.readouterr().err


def test_masks_are_not_lost_in_augmentation(dense_config, tmp_path, capsys):
    more = TTA.format(model="DetTTAModel", annotations="with_bbox=True", pack="Det")
    config, checkpoint = dense_config("detection", more)
    assert tool.main([str(config), str(checkpoint), "--tta"]) == 2
    assert "tta_model.type=InstanceTTAModel" in capsys.readouterr().err


@pytest.mark.parametrize("wrapped", [True, False])
def test_heads_are_not_tested_at_random(dense_config, tmp_path, wrapped, capsys):
    config, checkpoint = dense_config("segmentation")
    state_dict = torch.load(checkpoint)["state_dict"]
    backbone = {k: v for k, v in state_dict.items() if k.startswith("backbone.")}
    torch.save({"state_dict": backbone} if wrapped else backbone, tmp_path / "backbone.pth")
    assert tool.main([str(config), str(tmp_path / "backbone.pth")]) == 2
    assert "holds a backbone alone" in capsys.readouterr().err
