"""Re-identification from the command line: training, testing, ranked lists and pictures."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import visattn
from visattn.tools import browse as browse_tool
from visattn.tools import test as tool
from visattn.tools import train as train_tool
from visattn.tools import visualize as visualize_tool
from visattn.zoo.config import load_config
from visattn.zoo.data.own import apply_own_data
from visattn.zoo.errors import ConfigError, DataError
from visattn.zoo.inference.predictors import load_predictor
from visattn.zoo.reid.drawing import FRAME, HEIGHT, draw_ranking
from visattn.zoo.testing import task_of

MODELS = {
    "dcal": 'model_name="dcal_deit_tiny_patch16", glca_ratio=0.3',
    "plain": 'model_name="deit_tiny_patch16_224"',
}


@pytest.fixture
def config(scenes, tmp_path):
    """Writes a small configuration on embedded people; gives its path."""
    base = Path(visattn.__file__).parent / "configs/reid/baseline/vit-micro_embedded.py"
    people = scenes.parent / "reid"

    def write(kind="dcal", more=""):
        path = tmp_path / f"{kind}_{tmp_path.name}.py"
        path.write_text(f"""
_base_ = {str(base)!r}
model = dict(
    backbone=dict(
        _delete_=True, {MODELS[kind]}, img_size=(96, 48), patch_size=24, depth=2, embed_dim=48
    ),
    num_classes=4,
)
train_dataloader = dict(
    batch_size=8,
    sampler=dict(num_identities=4, num_instances=2),
    dataset=dict(data_root="{people}"),
)
val_dataloader = dict(dataset=dict(data_root="{people}"))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1)
visualizer = dict(_delete_=True, type="Visualizer", vis_backends=[dict(type="LocalVisBackend")])
log_level = "ERROR"
{more}""")
        return path

    return write


@pytest.fixture
def trained(config, tmp_path):
    path = config()
    train_tool.train([str(path), "--work-dir", str(tmp_path / "run")])
    return path, tmp_path / "run" / "epoch_1.pth"


def run(path, checkpoint, tmp_path, *options):
    argv = [str(path), str(checkpoint), "--work-dir", str(tmp_path / "test")]
    return tool.evaluate([*argv, *map(str, options)])


def test_training_then_testing_saves_and_draws_ranked_lists(trained, tmp_path):
    lists, pictures = tmp_path / "lists.json", tmp_path / "pictures"
    metrics = run(*trained, tmp_path, "--out", lists, "--show-dir", pictures)
    assert set(metrics) == {f"reid/{key}" for key in ("mAP", "mINP", "rank1", "rank5", "rank10")}
    content = json.loads(lists.read_text())
    assert content["metrics"]["mAP"] == pytest.approx(metrics["reid/mAP"])
    assert len(content["queries"]) == 2 * 4
    first = [query["ranked"][0]["right"] for query in content["queries"]]
    assert metrics["reid/rank1"] == pytest.approx(100 * np.mean(first))
    drawn = sorted(path.name for path in pictures.iterdir())
    assert drawn == sorted(query["path"].rpartition("/")[2] for query in content["queries"])
    tile = HEIGHT // 2 + 2 * FRAME + 4
    assert PIL.Image.open(pictures / drawn[0]).size == (12 * tile, HEIGHT + 2 * FRAME + 4)


def test_saved_lists_are_drawn_with_what_dcal_selects(trained, tmp_path):
    path, checkpoint = trained
    lists, folder = tmp_path / "lists.json", tmp_path / "drawn"
    run(path, checkpoint, tmp_path, "--out", lists, "--show-dir", tmp_path / "pictures")
    argv = [str(path), str(lists), "--out", str(folder)]
    visualize_tool.visualize([*argv, "--checkpoint", str(checkpoint), "--limit", "3"])
    drawn = sorted(folder.iterdir())
    assert len(drawn) == 3
    for picture in drawn:
        assert picture.read_bytes() == (tmp_path / "pictures" / picture.name).read_bytes()
    visualize_tool.visualize([*argv, "--count", "4", "--limit", "1"])
    tile = HEIGHT // 2 + 2 * FRAME + 4
    assert PIL.Image.open(drawn[0]).width == 5 * tile


def test_attention_of_a_re_identifier_is_drawn(trained, tmp_path):
    image = next(Path(load_config(trained[0]).test_dataloader.dataset.data_root).glob("query/*"))
    out = tmp_path / "attention.png"
    argv = [str(trained[0]), str(image), "--checkpoint", str(trained[1]), "--out", str(out)]
    visualize_tool.visualize(argv)
    assert out.is_file()


@pytest.mark.parametrize("content", ["", "[]", '{"queries": [{"path": "a"}]}'])
def test_what_is_no_ranked_list_is_said(config, tmp_path, content):
    (tmp_path / "lists.json").write_text(content)
    with pytest.raises(DataError, match=r"lists\.json holds no ranked lists: write them"):
        visualize_tool.visualize([str(config()), str(tmp_path / "lists.json")])


def test_plain_networks_have_no_patches_to_show(config, tmp_path):
    path = config("plain")
    train_tool.train([str(path), "--work-dir", str(tmp_path / "run")])
    run(path, tmp_path / "run/epoch_1.pth", tmp_path, "--show-dir", tmp_path / "pictures")
    tile = HEIGHT // 2 + 2 * FRAME + 4
    picture = next((tmp_path / "pictures").glob("*.jpg"))
    assert PIL.Image.open(picture).width == 11 * tile
    assert (tmp_path / "pictures" / "rankings.json").is_file()


def test_frames_tell_right_from_wrong_and_patches_stay_bright(tmp_path):
    path = str(tmp_path / "white.png")
    PIL.Image.new("RGB", (48, 96), (255, 255, 255)).save(path)
    query = {"path": path, "ranked": [{"path": path, "right": r} for r in (True, False, True)]}
    selected = np.zeros((4, 2), bool)
    selected[0, 1] = True
    picture = np.asarray(draw_ranking(query, count=2, selected=selected)).astype(int)
    tiles = np.split(picture, 4, axis=1)
    frames = [tile[4, 4] for tile in tiles]
    assert frames[0][2] > 200 and (frames[1] == frames[0]).all()
    assert frames[2][1] > 120 > frames[2][0] and frames[3][0] > 200 > frames[3][1] + 100
    inner = tiles[1][FRAME + 2 : -FRAME - 2, FRAME + 2 : -FRAME - 2, 0]
    patches = inner.reshape(4, 48, 2, 48).mean((1, 3))
    assert patches[0, 1] > 240 and np.delete(patches.ravel(), 1).max() < 100


def test_a_run_can_be_tested_without_weights_of_imagenet(config, trained, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    path = config(more="model['backbone']['pretrained'] = True\n")
    assert load_config(path).model.backbone.pretrained
    run(path, trained[1], tmp_path)


@pytest.mark.parametrize("option", ["--report", "--out"])
def test_what_re_identification_does_not_have_is_said(config, tmp_path, option):
    checkpoint = tmp_path / "none.pth"
    torch.save({}, checkpoint)
    with pytest.raises(ConfigError, match=r"classes|ranked lists"):
        run(config(), checkpoint, tmp_path, option, tmp_path / "folder")


def test_single_images_are_not_predicted(config, tmp_path):
    with pytest.raises(ConfigError, match="says nothing of single images"):
        load_predictor(config(), None)


def test_batches_can_be_browsed(config, tmp_path):
    out = tmp_path / "batch.png"
    browse_tool.browse([str(config()), "--out", str(out)])
    assert out.is_file()


def test_other_peoples_data_are_a_folder_and_a_number(config):
    cfg = load_config(config())
    assert task_of(cfg) == "reid"
    apply_own_data(cfg, data_root="mine")
    assert {cfg.train_dataloader.dataset.data_root, cfg.val_dataloader.dataset.data_root} == {
        "mine"
    }
    with pytest.raises(ConfigError, match="how many identities train as model.num_classes"):
        apply_own_data(cfg, classes=("ann", "bob"))


def test_more_identities_than_outputs_are_refused_before_training(config, tmp_path):
    path = config(more="model['num_classes'] = 3\n")
    with pytest.raises(DataError, match="4 identities but the model 3|outside 0..2"):
        train_tool.train([str(path), "--work-dir", str(tmp_path / "run")])
