"""What training of diffusion reads."""

import json

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from PIL import Image

from visattn.zoo.diffusion.data import (
    BucketBatchSampler,
    CaptionedBoxes,
    CocoCaptions,
    JsonLines,
    VisualGenome,
    aspect_buckets,
    collate_records,
    make_record,
)
from visattn.zoo.errors import DataError

SIZE = (80, 40)
BOXES = [[0, 0, 8, 8], [20, 4, 60, 36], [70, 30, 80, 40]]
WORDS = ["a cat", "a dog", "an eye"]


@pytest.fixture
def picture(tmp_path):
    """An image in which red grows to the right and green downwards, and its folder."""
    columns, rows = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    pixels = np.stack([3 * columns, 6 * rows, 0 * rows], -1).astype(np.uint8)
    (tmp_path / "train2017").mkdir()
    Image.fromarray(pixels).save(tmp_path / "train2017/1.png")
    return tmp_path


def record(path, boxes=BOXES, captions=("a room",), size=SIZE):
    words = [WORDS[i % 3] for i in range(len(boxes))]
    return make_record(path, size, captions, list(zip(boxes, words, strict=True)), "here")


def samples_of(picture, count=40, **kwargs):
    data = CaptionedBoxes([record(picture / "train2017/1.png")], size=32, **kwargs)
    return [data[0] for _ in range(count)]


@pytest.mark.parametrize("random_crop", [True, False])
def test_boxes_follow_the_crop(picture, random_crop):
    for sample in samples_of(picture, min_side=0, random_crop=random_crop):
        assert sample["image"].shape == (3, 32, 32)
        # 40 x 40 pixels become 32 x 32: the first column's red tells where the crop begins.
        left = sample["image"][0, 16, 0].item() / 3
        for box, word in zip(sample["boxes"], sample["captions"], strict=True):
            if not word:
                continue
            whole = BOXES[WORDS.index(word)]
            expected = (np.array(whole) - [left, 0, left, 0]).clip(0, 40) / 40
            torch.testing.assert_close(box.double(), torch.tensor(expected), atol=0.04, rtol=0)


def test_crops_are_central_where_nothing_is_random(picture):
    (sample,) = samples_of(picture, 1, training=False)
    # The dog alone is in the middle 40 columns; half of it at least has to be.
    assert sample["captions"] == ["a dog"]
    torch.testing.assert_close(sample["boxes"], torch.tensor([[0, 0.1, 1, 0.9]]))


def test_small_boxes_are_dropped(picture):
    path = picture / "train2017/1.png"
    boxes = [[30, 10, 31, 30], [30, 10, 32, 30]]
    (kept,) = CaptionedBoxes([record(path, boxes)], size=32, training=False)[0]["boxes"]
    assert kept[2] - kept[0] == pytest.approx(2 / 40)


def test_training_shuffles_boxes_and_takes_as_many_as_there_are_slots(picture):
    path = picture / "train2017/1.png"
    boxes = [[20 + 4 * i, 0, 24 + 4 * i, 40] for i in range(10)]
    data = CaptionedBoxes([record(path, boxes)], size=32, max_instances=4, caption_dropout=0)
    data.random_crop = False
    firsts = {data[0]["boxes"][0, 0].item() for _ in range(30)}
    assert len(firsts) > 4 and all(len(data[0]["boxes"]) == 4 for _ in range(5))


def test_captions_of_image_and_boxes_are_dropped_together(picture):
    samples = samples_of(picture, 400, caption_dropout=0.25)
    empty = [sample["caption"] == "" for sample in samples]
    assert 60 < sum(empty) < 140
    for sample, is_empty in zip(samples, empty, strict=True):
        assert all((caption == "") == is_empty for caption in sample["captions"])
    evaluated = samples_of(picture, 50, caption_dropout=0.9, training=False)
    assert {sample["caption"] for sample in evaluated} == {"a room"}


def test_buckets_keep_the_area_and_the_shape():
    buckets = aspect_buckets(512)
    assert (512, 512) in buckets and len(set(buckets)) == len(buckets)
    for width, height in buckets:
        assert width % 64 == height % 64 == 0
        assert 0.8 * 512**2 < width * height <= 512**2
        assert (height, width) in buckets and max(width, height) <= 2 * min(width, height)


def test_images_go_to_the_bucket_of_their_shape(picture):
    path = picture / "train2017/1.png"
    data = CaptionedBoxes([record(path)], size=64, buckets=True, multiple=16)
    width, height = data.buckets_for(0)
    assert abs(np.log(width / height) - np.log(2)) < 0.2
    assert data[0]["image"].shape == (3, height, width)


def test_batches_are_of_one_bucket_and_follow_seed_and_epoch(picture):
    path = picture / "train2017/1.png"
    sizes = [(80, 40)] * 7 + [(40, 80)] * 5 + [(50, 50)]
    records = [record(path, [[0, 0, 9, 9]], size=size) for size in sizes]
    data = CaptionedBoxes(records, size=64, buckets=True, multiple=16)
    sampler = BucketBatchSampler(DefaultSampler(data, shuffle=True, seed=3), 2)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 3 + 2
    assert all(len({data.buckets_for(i) for i in batch}) == 1 for batch in batches)
    assert batches == list(sampler)
    sampler.sampler.set_epoch(1)
    assert batches != list(sampler)
    with pytest.raises(DataError, match="lower train_dataloader.batch_size"):
        BucketBatchSampler(DefaultSampler(data, shuffle=True, seed=3), 8)


def test_a_batch_stacks_images_alone(picture):
    batch = collate_records(samples_of(picture, 3))
    assert batch["image"].shape == (3, 3, 32, 32)
    assert [len(batch[key]) for key in ("boxes", "captions", "caption", "path")] == [3] * 4


def write_coco(folder, **changes):
    boxes = [[b[0], b[1], b[2] - b[0], b[3] - b[1]] for b in BOXES]
    annotations = [
        {"id": i, "image_id": 1, "category_id": i, "bbox": box, **changes}
        for i, box in enumerate(boxes)
    ]
    annotations[2]["caption"] = "an open eye"
    names = ["cat", "dog", "eye"]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": SIZE[0], "height": SIZE[1]}],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    captions = [{"id": i, "image_id": 1, "caption": text} for i, text in enumerate("ab")]
    (folder / "annotations").mkdir(exist_ok=True)
    for task, data in (("instances", content), ("captions", {"annotations": captions})):
        (folder / f"annotations/{task}_train2017.json").write_text(json.dumps(data))


def test_coco_boxes_are_called_by_category_or_their_own_caption(picture):
    write_coco(picture)
    (found,) = CocoCaptions(str(picture)).records
    assert found.boxes.tolist() == BOXES and found.captions == ("a", "b")
    assert found.box_captions == ["a cat", "a dog", "an open eye"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 7}, "category 7"),
        ({"image_id": 5}, "of no image"),
        ({"bbox": [0, 0, 90, 9]}, r"box \[0.0, 0.0, 90.0, 9.0\].*80x40"),
        ({"bbox": [0, 0, 0, 9]}, "no area"),
        ({"bbox": "x"}, "not laid out"),
        ({"iscrowd": 1}, "no box"),
    ],
)
def test_wrong_coco_annotations_are_named(picture, changes, message):
    write_coco(picture, **changes)
    if "category_id" in changes:
        path = picture / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        content["annotations"][2].pop("caption")
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        CocoCaptions(str(picture))


def test_an_image_of_another_size_than_its_annotation_is_named(picture):
    data = CaptionedBoxes([record(picture / "train2017/1.png", size=(80, 41))], size=32)
    with pytest.raises(DataError, match=r"1.png is 80x40 and its annotation says 80x41"):
        data[0]


def test_visual_genome_lists_phrases_as_the_caption_of_the_whole(picture):
    (picture / "train2017").rename(picture / "VG_100K")
    regions = [
        {"x": b[0], "y": b[1], "width": b[2] - b[0], "height": b[3] - b[1], "phrase": word}
        for b, word in zip([*BOXES, [60, 0, 99, 40]], [*WORDS, "a wall"], strict=True)
    ]
    (picture / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": regions}]))
    image = {"image_id": 1, "url": "https://x.org/rak248/VG_100K/1.png", "width": 80, "height": 40}
    (picture / "image_data.json").write_text(json.dumps([image]))
    data = VisualGenome(str(picture), size=32, max_phrases=2, caption_dropout=0, min_side=0)
    (found,) = data.records
    assert found.boxes.tolist() == [*BOXES, [60, 0, 80, 40]]
    for sample in (data[0] for _ in range(10)):
        assert sample["caption"] == ", ".join(sample["captions"][:2])


def test_json_lines_are_read(picture):
    instance = {"bbox": BOXES[1], "caption": "a dog"}
    line = {"image": "train2017/1.png", "caption": "a room", "instances": [instance]}
    (picture / "train.jsonl").write_text(json.dumps(line) + "\n\n")
    (found,) = JsonLines(str(picture)).records
    assert (found.size, found.captions, found.box_captions) == (SIZE, ("a room",), ["a dog"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"caption": "a room"}, "line 1 must be an object with image"),
        ({"image": "train2017/1.png", "boxes": []}, "nothing reads the key 'boxes'"),
        ({"image": "none.png"}, "none.png"),
        (
            {"image": "train2017/1.png", "instances": [{"bbox": [5, 5, 1, 1], "caption": "x"}]},
            "left <= right",
        ),
        (
            {"image": "train2017/1.png", "instances": [{"bbox": [0, 0, 1, 1], "caption": " "}]},
            "caption is empty",
        ),
        ({"image": "train2017/1.png", "caption": "alone"}, "no box in 1 images"),
    ],
)
def test_wrong_lines_are_named(picture, line, message):
    (picture / "train.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match=message):
        JsonLines(str(picture))
