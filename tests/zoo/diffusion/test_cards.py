"""Judging what is drawn on cards, and comparing methods."""

import numpy as np
import PIL.Image
import pytest
import torch

from visattn.zoo.data import cards as drawn_cards
from visattn.zoo.diffusion import cards, comparison, summary
from visattn.zoo.diffusion.data import CocoCaptions
from visattn.zoo.errors import ConfigError, UserError
from visattn.zoo.inference import Classification


@pytest.fixture
def records(embedded_root):
    root = embedded_root / "data/embedded/cards"
    return CocoCaptions(str(root), training=False).records


def pixels_of(record):
    return np.asarray(PIL.Image.open(record.path))


class FromTruth:
    """Reads scans by looking for the nearest of those that it was shown."""

    names = [str(digit) for digit in range(10)]
    palette = None

    def __init__(self, scans, digits):
        self.scans, self.digits = np.stack(scans), digits

    def prepare(self, image):
        return np.asarray(image.convert("L"), np.float32)

    def predict(self, inputs, images, *rest):
        found = []
        for pixels in inputs:
            nearest = np.square(self.scans - pixels).sum((1, 2)).argmin()
            digit = self.digits[nearest]
            scores = np.ones(1, np.float32)
            found.append(
                Classification(None, (8, 8), [self.names[digit]], scores, np.array([digit]))
            )
        return found


@pytest.fixture
def reader(records, monkeypatch):
    """A judge that knows the very cards; results do not depend on a trained network."""
    scans, digits = [], []
    for record in records:
        for box, caption in zip(record.boxes, record.box_captions, strict=True):
            scan = cards.scan(pixels_of(record), box).convert("L")
            scans.append(np.asarray(scan, np.float32))
            digits.append(cards.CLASSES.index(caption.split()[-1]))
    truth = FromTruth(scans, digits)

    def predict_each(predictor, images, batch_size):
        yield from predictor.predict([predictor.prepare(image) for image in images], images)

    monkeypatch.setattr(cards, "predict_each", predict_each)
    return truth


def test_ink_is_the_glyph(records):
    for record in records:
        weights = cards.ink(pixels_of(record))
        inside = np.zeros((drawn_cards.SIZE, drawn_cards.SIZE), bool)
        for left, top, right, bottom in record.boxes.astype(int):
            inside[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
        assert weights[~inside].max() < 0.05
        assert weights.max() == 1


def test_glyphs_are_found_where_they_are(records):
    boxes = 0
    for record in records:
        found = torch.from_numpy(cards.find_glyphs(pixels_of(record)))
        overlaps = cards.box_iou(torch.from_numpy(record.boxes), found).max(1).values
        boxes += int((overlaps > 0.7).sum())
    # Some digits of two strokes fall apart.
    assert boxes > 0.85 * sum(len(record.boxes) for record in records)


def test_colours_of_cards_are_told(records):
    for record in records:
        for box, caption in zip(record.boxes, record.box_captions, strict=True):
            name = cards.nearest_colour(pixels_of(record), box, drawn_cards.COLOUR_NAMES)
            assert name == caption.split()[1]


def test_scans_are_white_on_black_and_as_high_as_the_picture(records):
    scan = np.asarray(cards.scan(pixels_of(records[0]), records[0].boxes[0]).convert("L"))
    assert scan.shape == (8, 8) and scan[0].max() > 60 and scan[-1].max() > 60
    assert scan[:, 0].min() < 60


def test_what_was_asked_for_succeeds_and_what_was_not_fails(records, reader):
    images = [pixels_of(record) for record in records]
    boxes = [record.boxes for record in records]
    captions = [record.box_captions for record in records]
    right = cards.means(cards.judge(images, boxes, captions, reader))
    assert right["digit"] == right["colour"] == right["both"] == 100
    assert right["success"] > 85 and right["iou"] > 80
    other = [
        [f"a red {cards.CLASSES[(cards.CLASSES.index(c.split()[-1]) + 1) % 10]}" for c in own]
        for own in captions
    ]
    assert cards.means(cards.judge(images, boxes, other, reader))["digit"] == 0
    empty = [np.full_like(image, 120) for image in images]
    wrong = cards.means(cards.judge(empty, boxes, captions, reader))
    assert wrong["iou"] == wrong["success"] == 0


def test_metric_judges_pictures_in_their_own_pixels(records, reader, monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "load_judge", lambda *_: reader)
    (tmp_path / "b.pth").touch()
    metric = cards.DigitsInBoxes("a.py", str(tmp_path / "b.pth"))
    samples = [
        {
            "drawn": torch.from_numpy(pixels_of(record).copy()).permute(2, 0, 1),
            "boxes": torch.from_numpy(record.boxes / drawn_cards.SIZE),
            "captions": record.box_captions,
        }
        for record in records
    ]
    metric.process(None, samples)
    assert metric.evaluate(len(samples))["boxes/both"] == 100


def test_a_missing_judge_is_named_before_training():
    with pytest.raises(ConfigError, match=r"none.pth is missing: python tools/train.py some.py"):
        cards.DigitsInBoxes("some.py", "none.pth")


def test_layouts_of_records_keep_boxes_captions_and_noise(records):
    layout = comparison.to_layout(records[0])
    again = comparison.to_layout(records[0])
    assert layout == again and layout.seed is not None
    assert layout.prompt == records[0].captions[0]
    for instance, box in zip(layout.instances, records[0].boxes, strict=True):
        assert instance.in_pixels(drawn_cards.SIZE, drawn_cards.SIZE) == pytest.approx(box.tolist())
    assert len({comparison.to_layout(record).seed for record in records}) == len(records)


def test_rows_become_a_table(tmp_path):
    row = dict.fromkeys(summary.COLUMNS, 12.34) | {"method": "roictrl", "boxes": 3}
    summary.write_rows([row], tmp_path / "rows.csv")
    text = summary.cards_table(tmp_path / "rows.csv")
    assert text.splitlines()[-1] == "| ROICtrl | 12.3 | 12.3 | 12.3 | 12.3 | 12.3 |"
    with pytest.raises(UserError, match="none.csv"):
        summary.cards_table(tmp_path / "none.csv")
