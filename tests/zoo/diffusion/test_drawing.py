"""Pictures of layouts: what is where on them."""

import numpy as np
import PIL.Image
import pytest

from visattn.zoo.diffusion.drawing import contact_sheet, draw_boxes, draw_comparison, draw_layout
from visattn.zoo.diffusion.layouts import Instance, Layout

LAYOUT = Layout(
    "a",
    "a long prompt about a cup, a pen and many more things that are on a desk " * 3,
    (Instance((0.1, 0.1, 0.5, 0.9), "a red cup"), Instance((0.6, 0.2, 0.9, 0.7), "a pen")),
)


def test_boxes_are_drawn_where_they_are():
    image = PIL.Image.new("RGB", (200, 100), "black")
    drawn = np.asarray(draw_boxes(image, LAYOUT, captions=False))
    changed = (drawn > 0).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 89, 20, 179)
    assert not changed[20:80, 30:90].any() and not np.asarray(image).any()


def test_captions_are_written_in_their_boxes():
    image = PIL.Image.new("RGB", (200, 200), "black")
    with_text, without = (np.asarray(draw_boxes(image, LAYOUT, c)) for c in (True, False))
    rows, columns = np.nonzero((with_text != without).any(-1))
    assert rows.size and rows.min() >= 20 and columns.min() >= 20 and columns.max() < 180


def test_a_comparison_has_the_layout_and_all_pictures():
    red, blue = (PIL.Image.new("RGB", (64, 32), colour) for colour in ("red", "blue"))
    sheet = draw_comparison(LAYOUT, {"one": red, "two": blue}, height=128)
    pixels = np.asarray(sheet)
    assert sheet.width == 3 * 256 + 4 * 8
    assert (pixels == (255, 0, 0)).all(-1).sum() > 20_000
    assert (pixels == (0, 0, 255)).all(-1).sum() > 20_000


def test_a_contact_sheet_has_a_row_a_layout():
    images = [PIL.Image.new("RGB", (32, 32), (0, 10 * i, 0)) for i in range(3)]
    one = contact_sheet([LAYOUT], {"x": images[:1]}, boxes=False)
    three = contact_sheet([LAYOUT] * 3, {"x": images}, boxes=False)
    assert three.width == one.width and three.height - one.height == 2 * (one.height - 19)
    with pytest.raises(ValueError, match="'x' has 2 pictures of 3 layouts"):
        contact_sheet([LAYOUT] * 3, {"x": images[:2]})


def test_a_layout_without_instances_can_be_drawn():
    assert draw_layout(Layout("b", "nothing"), (40, 30)).size == (40, 30)
