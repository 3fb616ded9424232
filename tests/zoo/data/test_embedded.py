import hashlib
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from visattn.zoo.data import cards, embedded, pedestrians
from visattn.zoo.data.checks import check_dataset
from visattn.zoo.data.embedded import CLASSES, make_embedded
from visattn.zoo.data.reid import Market1501
from visattn.zoo.errors import DataError

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def small_scenes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "SCENES", {"train": 24, "val": 12})
        patch.setattr(embedded, "GLYPHS_PER_SCAN", 0)
        patch.setattr(cards, "CARDS", {"train": 20, "val": 10})
        patch.setattr(pedestrians, "PEOPLE", {"train": 6, "test": 4})
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory, small_scenes):
    return make_embedded(tmp_path_factory.mktemp("data") / "embedded")


@pytest.fixture(scope="module", params=SPLITS)
def coco(request, data):
    from faster_coco_eval import COCO

    return COCO(str(data / f"scenes/annotations/instances_{request.param}2017.json")), request.param


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def read_semantic(data, split, image):
    path = data / f"scenes/stuffthingmaps/{split}2017/{image['file_name']}"
    return np.asarray(Image.open(path))


def test_a_seed_gives_the_same_bytes(data, tmp_path):
    assert digest(make_embedded(tmp_path / "again")) == digest(data)


def test_another_seed_gives_other_data_and_replaces(data, tmp_path):
    out = make_embedded(tmp_path / "data", seed=0)
    make_embedded(out, seed=1)
    old, new = digest(data), digest(out)
    assert old["scenes/val2017/000000000001.png"] != new["scenes/val2017/000000000001.png"]
    assert json.loads((out / "embedded.json").read_text())["seed"] == 1


def test_what_is_complete_is_reused(data, monkeypatch):
    monkeypatch.setattr(embedded, "_split_scans", lambda seed: pytest.fail("made again"))
    assert make_embedded(data) == data


def test_digits_are_an_image_folder_of_all_scans(data):
    splits = {split: ImageFolder(data / "digits" / split) for split in SPLITS}
    assert {split: len(folder) for split, folder in splits.items()} == {"train": 1437, "val": 360}
    for folder in splits.values():
        assert folder.classes == [str(digit) for digit in range(10)]
        assert np.bincount(folder.targets).min() > 0.09 * len(folder)
        assert folder[0][0].size == (8, 8)


def test_splits_share_no_scan_of_one_writing(data):
    from sklearn.datasets import load_digits

    def scans(split):
        return [path.read_bytes() for path in (data / "digits" / split).rglob("*.png")]

    written = sorted(Image.open(p).tobytes() for p in (data / "digits").rglob("*.png"))
    shipped = np.round(load_digits().images / 16 * 255).astype(np.uint8)
    assert written == sorted(scan.tobytes() for scan in shipped)
    assert not set(scans("train")) & set(scans("val"))


def test_splits_share_no_photograph():
    photographs = [set(embedded.PHOTOGRAPHS[split]) for split in SPLITS]
    assert not set.intersection(*photographs)


@pytest.mark.parametrize("split", SPLITS)
def test_glyphs_show_each_scan_of_a_split(tmp_path, small_scenes, monkeypatch, split):
    few = {name: (x[:60], y[:60]) for name, (x, y) in embedded._split_scans(0).items()}
    monkeypatch.setattr(embedded, "_split_scans", lambda seed: few)
    monkeypatch.setattr(embedded, "SCENES", {"train": 1, "val": 1})
    monkeypatch.setattr(embedded, "GLYPHS_PER_SCAN", 2)
    data = make_embedded(tmp_path / "data")
    glyphs, digits = (ImageFolder(data / kind / split) for kind in ("glyphs", "digits"))
    assert [x // 2 for x in np.bincount(glyphs.targets)] == np.bincount(digits.targets).tolist()
    assert {image.size for image, _ in glyphs} == {(64, 64)}


def test_categories_are_the_ten_digits(coco):
    api, _ = coco
    names = {category["id"]: category["name"] for category in api.dataset["categories"]}
    assert names == {digit + 1: word for digit, word in enumerate(CLASSES)}


def test_every_image_is_there_and_has_three_to_six_digits(coco, data):
    api, split = coco
    files = {path.name for path in (data / f"scenes/{split}2017").iterdir()}
    assert files == {image["file_name"] for image in api.dataset["images"]}
    for image in api.dataset["images"]:
        pixels = Image.open(data / f"scenes/{split}2017" / image["file_name"])
        assert pixels.mode == "RGB"
        assert pixels.size == (image["width"], image["height"]) == (160, 160)
        assert 3 <= len(api.get_ann_ids(img_ids=[image["id"]])) <= 6


def test_masks_agree_with_boxes_and_areas(coco):
    api, _ = coco
    for annotation in api.dataset["annotations"]:
        mask = np.asarray(api.annToMask(annotation), bool)
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (rows.min(), rows.max()) == (top, top + height - 1)
        assert (columns.min(), columns.max()) == (left, left + width - 1)
        assert mask.sum() == annotation["area"]


def test_semantic_masks_are_the_union_of_disjoint_instances(coco, data):
    api, split = coco
    for image in api.dataset["images"]:
        union = np.zeros((160, 160), np.uint8)
        for annotation in api.load_anns(api.get_ann_ids(img_ids=[image["id"]])):
            mask = np.asarray(api.annToMask(annotation), bool)
            assert not union[mask].any()
            union[mask] = annotation["category_id"]
        np.testing.assert_array_equal(read_semantic(data, split, image), union)


def test_digits_stand_out_from_the_photograph(coco, data):
    api, split = coco
    for annotation in api.dataset["annotations"]:
        image = api.load_imgs([annotation["image_id"]])[0]
        pixels = np.asarray(Image.open(data / f"scenes/{split}2017" / image["file_name"]), float)
        mask = np.asarray(api.annToMask(annotation), bool)
        left, top, width, height = annotation["bbox"]
        around = np.zeros_like(mask)
        around[top : top + height, left : left + width] = True
        around &= read_semantic(data, split, image) == 0
        glyph = np.median(pixels[mask], axis=0)
        assert np.linalg.norm(pixels[around] - glyph, axis=1).mean() > 60


def test_people_are_market_1501_with_all_its_traps(data):
    train, test = (Market1501(data / "reid", [], split, check=None) for split in ("train", "test"))
    assert len(train) == 6 * 4 * 4 and check_dataset(train, {"num_classes": 6}).warnings == ()
    assert train[0]["inputs"].shape == (3, 96, 48)
    assert {int(name) for name in train.classes}.isdisjoint(test.labels)
    # One query by each camera that sees a person, and that camera's other images are junk.
    queries = list(zip(test.labels[test.is_query], test.cameras[test.is_query], strict=True))
    assert len(queries) == len(set(queries)) == 4 * 4
    gallery = test.labels[~test.is_query]
    assert (gallery == 0).sum() == 60 and len(gallery) == 60 + 4 * 4 * 2
    assert len(list((data / "reid/bounding_box_test").glob("-1_*"))) == 20


def test_people_look_alike_to_a_camera_and_each_camera_has_its_colours(data):
    """Of a person's images those by one camera are nearer to each other, in their mean colours."""
    train = Market1501(data / "reid", [], check=None)
    colours = np.stack([s["inputs"].float().mean((1, 2)).numpy() for s in train])
    near, far = [], []
    for i in range(len(train)):
        for j in range(i):
            if train.labels[i] == train.labels[j]:
                same = train.cameras[i] == train.cameras[j]
                (near if same else far).append(np.linalg.norm(colours[i] - colours[j]))
    assert np.mean(far) > 1.5 * np.mean(near)


def test_a_perfect_detector_scores_one(coco):
    from faster_coco_eval import COCOeval_faster

    api, _ = coco
    detections = [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "segmentation": api.annToRLE(annotation),
            "score": 1.0,
        }
        for annotation in api.dataset["annotations"]
    ]
    for kind in ("bbox", "segm"):
        evaluation = COCOeval_faster(api, api.loadRes(detections), kind, print_function=print)
        evaluation.run()
        assert evaluation.stats[0] == pytest.approx(1)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_name_the_digits_of_their_image(data, split):
    folder = data / "scenes/annotations"
    captions = json.loads((folder / f"captions_{split}2017.json").read_text())["annotations"]
    instances = json.loads((folder / f"instances_{split}2017.json").read_text())["annotations"]
    assert len(captions) == 2 * len({entry["image_id"] for entry in instances})
    for caption in captions:
        seen = [
            CLASSES[entry["category_id"] - 1]
            for entry in instances
            if entry["image_id"] == caption["image_id"]
        ]
        digits = re.split("over|right", caption["caption"])[caption["id"] % 2 == 0]
        named = [word for word in re.findall(r"\w+", digits) if word in CLASSES]
        assert sorted(named) == sorted(seen)


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_is_not_ours_is_left_alone(tmp_path, taken):
    out = tmp_path / "precious"
    if taken == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"precious exists and holds no embedded data: choose"):
        make_embedded(out)
    assert "mine" in (out if taken == "file" else out / "thesis.tex").read_text()


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_write_scenes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_embedded(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None if name == "skimage" else name)
    with pytest.raises(ModuleNotFoundError, match=r'skimage .*pip install "visattn\[train\]"'):
        make_embedded(tmp_path / "data")


def test_a_missing_photograph_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(embedded.PHOTOGRAPHS["train"], "unicorn.png", "a unicorn")
    with pytest.raises(DataError, match=r"ships unicorn\.png"):
        make_embedded(tmp_path / "data")


def test_command_line(tmp_path, monkeypatch, capsys, small_scenes):
    monkeypatch.setattr(sys, "argv", ["embedded", str(tmp_path / "data"), "--seed", "3"])
    embedded.main()
    assert json.loads((tmp_path / "data/embedded.json").read_text())["seed"] == 3
    assert str(tmp_path / "data") in capsys.readouterr().out


@pytest.fixture(scope="module", params=SPLITS)
def card_records(request, data):
    def read(task):
        path = data / f"cards/annotations/{task}_{request.param}2017.json"
        return json.loads(path.read_text())

    images = {
        image["id"]: np.asarray(
            Image.open(data / f"cards/{request.param}2017/{image['file_name']}"), np.float64
        )
        for image in read("instances")["images"]
    }
    return images, read("instances")["annotations"], read("captions")["annotations"]


def test_cards_have_one_or_two_digits_that_do_not_touch(card_records):
    images, instances, _ = card_records
    for key in images:
        taken = np.zeros((cards.SIZE, cards.SIZE), int)
        own = [item["bbox"] for item in instances if item["image_id"] == key]
        assert 1 <= len(own) <= 2
        for left, top, width, height in own:
            taken[max(top - 1, 0) : top + height, max(left - 1, 0) : left + width] += 1
        assert taken.max() == 1


def test_captions_of_cards_say_what_is_there(card_records):
    images, instances, captions = card_records
    for entry in captions:
        listed, _, ground = entry["caption"].rpartition(" on ")
        own = [item for item in instances if item["image_id"] == entry["image_id"]]
        assert sorted(re.split(", | and ", listed)) == sorted(item["caption"] for item in own)
        pixels = images[entry["image_id"]]
        outside = np.ones((cards.SIZE, cards.SIZE), bool)
        for item in own:
            left, top, width, height = item["bbox"]
            box = slice(top, top + height), slice(left, left + width)
            outside[max(top - 1, 0) : top + height + 1, max(left - 1, 0) : left + width + 1] = 0
            _, colour, digit = item["caption"].split()
            assert CLASSES[item["category_id"] - 1] == digit
            nearest = np.linalg.norm(pixels[box] - embedded.COLOURS[colour], axis=-1).min()
            assert nearest < 10
        assert np.abs(pixels[outside] - cards.GROUNDS[ground]).max() <= 1
