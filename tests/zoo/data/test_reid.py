"""Re-identification data in the layouts of their archives, traps included."""

import logging

import numpy as np
import pytest
from PIL import Image

from visattn.zoo.data.checks import check_counts, check_dataset
from visattn.zoo.data.reid import MSMT17, DukeMTMCReID, Market1501, VeRi776
from visattn.zoo.errors import ConfigError, DataError

MARKET = {
    "bounding_box_train": [
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000301_01.jpg",
        "0011_c6s4_002502_01.jpg",
        "-1_c1s1_000401_03.jpg",
        "Thumbs.db",
        "._0002_c1s1_000451_03.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg", "0003_c3s3_064744_00.jpg"],
    "bounding_box_test": [
        "-1_c3s2_110253_02.jpg",
        "0000_c4s5_020779_08.jpg",
        "0000_c2s1_000151_01.jpg",
        "0001_c3s1_000551_00.jpg",
        "0003_c1s6_015971_02.jpg",
    ],
}
VERI = {
    "image_train": ["0001_c001_00016450_0.jpg", "0004_c019_00026255_0.jpg"],
    "image_query": ["0002_c002_00030600_0.jpg"],
    "image_test": ["0002_c014_00031960_0.jpg", "0776_c003_00077625_0.jpg"],
}
DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg"],
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c7_f0046985.jpg", "0023_c1_f0000001.jpg"],
}
MSMT_LISTS = {
    "train": ["0000/0000_000_01_0303morning_0015_0.jpg 0"],
    "val": ["0001/0001_003_14_0303morning_0033_0_ex.jpg 1"],
    "query": ["0000/0000_001_04_0303afternoon_0084_1.jpg 0"],
    "gallery": [
        "0000/0000_002_15_0302noon_0068_0.jpg 0",
        "0002/0002_000_01_0303morning_0028_0.jpg 2",
    ],
}


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg" and not path.name.startswith("._"):
        Image.new("RGB", (4, 8)).save(path)
    else:
        path.write_bytes(b"no image")


@pytest.fixture
def tree(tmp_path):
    def make(folders):
        for folder, names in folders.items():
            for name in names:
                save(tmp_path / folder / name)
        return tmp_path

    return make


@pytest.fixture
def msmt17(tmp_path):
    def make(train="train", test="test"):
        for name, lines in MSMT_LISTS.items():
            (tmp_path / f"list_{name}.txt").write_text("\n".join(lines) + "\n\n")
            folder = train if name in ("train", "val") else test
            for line in lines:
                save(tmp_path / folder / line.split()[0])
        return tmp_path

    return make


def test_market_trains_without_junk_and_counts_labels_from_zero(tree):
    data = Market1501(tree(MARKET), [], check=None)
    assert data.labels.tolist() == [0, 0, 1] and data.cameras.tolist() == [1, 2, 6]
    assert data.classes == ["0002", "0011"] and not data.is_query.any()
    sample = data[2]
    assert sample["inputs"].shape == (3, 8, 4)
    assert (int(sample["labels"]), int(sample["cameras"]), bool(sample["is_query"])) == (
        1,
        6,
        False,
    )
    assert sample["paths"].endswith("0011_c6s4_002502_01.jpg")
    assert check_dataset(data, {"num_classes": 2}).counts == {"0002": 2, "0011": 1}


def test_market_tests_on_queries_then_a_gallery_with_distractors(tree):
    data = Market1501(tree(MARKET), [], split="test", check=None)
    assert data.labels.tolist() == [1, 3, 0, 0, 1, 3]
    assert data.is_query.tolist() == [True, True, False, False, False, False]
    assert data.cameras.tolist() == [1, 3, 2, 4, 3, 1] and data.classes == []
    parts = [Market1501(data.root, [], split, check=None) for split in ("query", "gallery")]
    assert np.concatenate([part.labels for part in parts]).tolist() == data.labels.tolist()


def test_duke_and_veri_have_names_of_their_own(tree):
    duke = DukeMTMCReID(tree(DUKE), [], "test", check=None)
    assert duke.labels.tolist() == [5, 5, 23] and duke.cameras.tolist() == [2, 7, 1]
    veri = VeRi776(tree(VERI), [], "test", check=None)
    assert veri.labels.tolist() == [2, 2, 776] and veri.cameras.tolist() == [2, 14, 3]
    assert VeRi776(veri.root, [], check=None).cameras.tolist() == [1, 19]


@pytest.mark.parametrize(
    ("folders", "version"),
    [
        (("train", "test"), "V1"),
        (("mask_train_v2", "mask_test_v2"), "V2"),
        (("mask_train_V2", "mask_test_V2"), "V2"),
    ],
)
def test_msmt17_is_read_by_its_lists_and_its_version_is_recognised(msmt17, folders, version):
    root = msmt17(*folders)
    save(root / folders[0] / "0000" / "0000_009_01_unlisted_0_0.jpg")
    train = MSMT17(root, [], check=None, version=version)
    assert train.version == f"MSMT17 {version}"
    assert train.labels.tolist() == [0, 1] and train.cameras.tolist() == [1, 14]
    assert train[1]["inputs"].shape == (3, 8, 4)
    test = MSMT17(root, [], "test", check=None)
    assert test.labels.tolist() == [0, 0, 2] and test.cameras.tolist() == [4, 15, 1]
    other = {"V1": "V2", "V2": "V1"}[version]
    with pytest.raises(DataError, match=rf"is MSMT17 {version}, not {other}, whose faces"):
        MSMT17(root, [], check=None, version=other)


def test_a_link_does_not_hide_the_version(msmt17):
    root = msmt17("mask_train_v2", "mask_test_v2")
    archive = root / "archive"
    archive.mkdir()
    for kind in ("train", "test"):
        (root / f"mask_{kind}_v2").rename(archive / f"mask_{kind}_v2")
        (root / kind).symlink_to(archive / f"mask_{kind}_v2")
    assert MSMT17(root, [], check=None).version == "MSMT17 V2"


def test_folders_of_two_versions_are_refused(msmt17):
    with pytest.raises(DataError, match="not some of both"):
        MSMT17(msmt17("train", "mask_test_v2"), [])


def test_incomplete_msmt17_names_what_is_missing(msmt17):
    root = msmt17()
    (root / "train/0001/0001_003_14_0303morning_0033_0_ex.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images of MSMT17 V1 are missing.*0033_0_ex"):
        MSMT17(root, [])
    (root / "list_val.txt").unlink()
    with pytest.raises(DataError, match=r"no .*list_val\.txt"):
        MSMT17(root, [])
    (root / "list_query.txt").write_text("nonsense\n")
    with pytest.raises(DataError, match="has the line 'nonsense'"):
        MSMT17(root, [], "test", check=None)


def test_other_counts_than_published_are_said(tree, caplog):
    root = tree(MARKET)
    with caplog.at_level(logging.WARNING):
        Market1501(root, [])
    assert "not Market-1501 as published" in caplog.text
    assert "3 images of train (not 12,936), 2 identities of train (not 751)" in caplog.text
    with pytest.raises(DataError, match=r"2 images of query \(not 3,368\)"):
        Market1501(root, [], "test", check="raise")
    with pytest.raises(ConfigError, match="check must be"):
        Market1501(root, [], check="maybe")


def test_complete_data_are_recognised(tree, monkeypatch, caplog):
    monkeypatch.setattr(Market1501, "PUBLISHED", {"train": (3, 2)})
    with caplog.at_level(logging.INFO):
        Market1501(tree(MARKET), [], check="raise")
    assert "Market-1501 is complete" in caplog.text


def test_published_counts_may_be_missed_by_a_tolerance():
    assert check_counts("X", {"images": 1001}, {"images": 1000}, "raise", tolerance=0.002)
    assert not check_counts("X", {"images": 1003}, {"images": 1000}, None, tolerance=0.002)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"bounding_box_train": ["holiday.jpg"]}, "holiday.jpg names no identity and camera"),
        ({"bounding_box_train": ["-1_c1s1_000401_03.jpg"]}, "no images of Market-1501"),
        ({"query": ["0001_c1.jpg"]}, "bounding_box_train does not exist"),
    ],
)
def test_unusable_folders_are_named(tree, folders, message):
    with pytest.raises(DataError, match=message):
        Market1501(tree(folders), [])


def test_unknown_parts_are_refused(tree):
    with pytest.raises(ConfigError, match="split must be one of train, test"):
        Market1501(tree(MARKET), [], "val")
    with pytest.raises(ConfigError, match="version must be"):
        MSMT17(tree(MARKET), [], version="V3")
