"""Files of layouts: what they may hold, and what is said of what they may not."""

import json

import pytest

from visattn.zoo.diffusion.layouts import Instance, Layout, read_layouts, to_layout
from visattn.zoo.errors import DataError

RECORD = {
    "name": "desk",
    "prompt": "a desk",
    "seed": 3,
    "instances": [{"bbox": [0.1, 0.2, 0.5, 1.0], "caption": "a red cup"}],
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_reads_lists_and_lines(tmp_path, suffix):
    records = [RECORD, {"prompt": "a chair"}]
    lines = "\n".join(map(json.dumps, records))
    (tmp_path / f"x{suffix}").write_text(json.dumps(records) if suffix == ".json" else lines)
    desk, chair = read_layouts(tmp_path / f"x{suffix}")
    assert desk == Layout(
        "desk", "a desk", (Instance((0.1, 0.2, 0.5, 1.0), "a red cup", "a red cup"),), seed=3
    )
    assert chair == Layout("00001", "a chair")
    assert desk.for_pipeline() == [{"bbox": [0.1, 0.2, 0.5, 1.0], "caption": "a red cup"}]


def test_boxes_may_be_in_pixels():
    instance = {"bbox": [32, 0, 64, 64], "caption": "x", "label": "cup", "attribute": "red"}
    record = {"prompt": "p", "width": 128, "height": 64, "pixels": True, "instances": [instance]}
    (read,) = to_layout(record, "here", "a").instances
    assert read == Instance((0.25, 0.0, 0.5, 1.0), "x", "cup", "red")
    assert read.in_pixels(256, 128) == (64, 0, 128, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "here: prompt cannot be None"),
        ({"prompt": " "}, "here: prompt is empty"),
        ({"promt": "x"}, "here has the unknown key 'promt'; there are name, prompt"),
        ({"seed": True}, "here: seed cannot be True"),
        ({"seed": "1"}, "here: seed cannot be '1'"),
        ({"name": "../x"}, "here: a name becomes that of files"),
        ({"width": 4}, "here: width must be at least 8"),
        ({"pixels": True}, 'boxes in pixels need "width" and "height"'),
        ({"instances": [3]}, "here, instance 0 must be an object"),
        ({"instances": [{"caption": "x"}]}, "here, instance 0 lacks 'bbox'"),
        ({"instances": [{"bbox": [0, 0, 1], "caption": "x"}]}, "must be four numbers"),
        ({"instances": [{"bbox": [0, 0, 1, "1"], "caption": "x"}]}, "must be four numbers"),
        ({"instances": [{"bbox": [0.5, 0, 0.5, 1], "caption": "x"}]}, "left < right"),
        ({"instances": [{"bbox": [0, 0, 64, 64], "caption": "x"}]}, 'or set "pixels"'),
        ({"instances": [{"bbox": [0, 0, 1, 1], "caption": ""}]}, "instance 0: caption is empty"),
    ],
)
def test_names_what_cannot_be_meant(change, message):
    with pytest.raises(DataError, match=message):
        to_layout({**RECORD, **change}, "here", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "x.json is no JSON"),
        ("[]", "with one at least"),
        ('{"prompt": "x"}', "must hold a list"),
        (json.dumps([RECORD, RECORD]), "record 1: the name 'desk' occurs twice"),
        (json.dumps([RECORD, {"seed": 1}]), "record 1 lacks 'prompt'"),
    ],
)
def test_names_the_file_and_the_record(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_layouts(tmp_path / "x.json")


def test_names_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="there is no file of layouts .*none.json"):
        read_layouts(tmp_path / "none.json")
