"""Benchmarks of instance control on boxes whose figures can be computed by hand."""

import numpy as np
import PIL.Image
import pytest

from visattn.zoo.diffusion.evaluation import (
    InstDiffBench,
    MIGBench,
    ROICtrlBench,
    best_overlaps,
    crop,
)
from visattn.zoo.diffusion.judges import ColourJudge
from visattn.zoo.diffusion.layouts import Instance, Layout
from visattn.zoo.errors import DataError, UserError
from visattn.zoo.inference import Detection

IMAGE = PIL.Image.new("RGB", (100, 100), (127, 127, 127))
LEFT, RIGHT = (0.0, 0.0, 0.4, 1.0), (0.5, 0.0, 0.9, 1.0)


def detector(*found):
    """Finds always the same: (label, box in pixels, score)."""

    def detect(image, labels):
        names, boxes, scores = zip(*found, strict=True) if found else ((), (), ())
        return Detection(
            None,
            (image.height, image.width),
            list(names),
            np.array(scores, np.float32),
            np.zeros(len(names), np.int64),
            np.array(boxes, np.float32).reshape(-1, 4),
        )

    return detect


def judge(*captions):
    """Finds right what has one of the captions."""
    return lambda crops, instances: [instance.caption in captions for instance in instances]


def layout(*instances, name="a", track=""):
    return Layout(name, "things", tuple(Instance(*entry) for entry in instances), track=track)


CUP, PEN = (LEFT, "a red cup", "cup", "red"), (RIGHT, "a blue pen", "pen", "blue")
# The cup is found in half of its box (IoU 0.5), the pen exactly.
HALF_CUP, PEN_FOUND = ("cup", (0, 0, 40, 50), 0.9), ("pen", (50, 0, 90, 100), 0.8)


def test_an_overlap_is_the_greatest_with_the_own_label():
    found = detector(HALF_CUP, ("cup", (0, 0, 40, 20), 0.95), ("cup", (50, 0, 90, 100), 0.9))
    overlaps = best_overlaps(IMAGE, layout(CUP, PEN), found(IMAGE, []))
    assert overlaps == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize(
    ("found", "right", "overlap", "success"),
    [
        ((HALF_CUP, PEN_FOUND), ("a red cup", "a blue pen"), 0.75, 1.0),
        # A wrong attribute makes the overlap 0 where the position is right ...
        ((HALF_CUP, PEN_FOUND), ("a blue pen",), 0.5, 0.5),
        # ... and only there: 0.4 stays.
        ((("cup", (0, 0, 40, 40), 0.9), PEN_FOUND), ("a blue pen",), 0.7, 0.5),
        ((), ("a red cup", "a blue pen"), 0.0, 0.0),
    ],
)
def test_mig_bench_needs_position_and_attribute(found, right, overlap, success):
    bench = MIGBench(detector(*found), judge(*right))
    bench.update(IMAGE, layout(CUP, PEN))
    expected = {"mIoU": pytest.approx(overlap), "success": success}
    assert bench.compute() == {"L2": expected, "average": expected}


def test_mig_bench_has_levels_and_averages_instances():
    bench = MIGBench(detector(HALF_CUP, PEN_FOUND), judge("a red cup", "a blue pen"))
    bench.update(IMAGE, layout(CUP, PEN))
    bench.update(IMAGE, layout(CUP, PEN, (LEFT, "a pan", "pan", "red"), name="b"))
    figures = bench.compute()
    assert list(figures) == ["L2", "L3", "average"]
    assert figures["L3"] == {"mIoU": pytest.approx(0.5), "success": pytest.approx(2 / 3)}
    assert figures["average"] == {"mIoU": pytest.approx(0.6), "success": pytest.approx(0.8)}


def test_roictrl_bench_averages_tracks():
    bench = ROICtrlBench(detector(HALF_CUP, PEN_FOUND), judge("a red cup"))
    bench.update(IMAGE, layout(CUP, PEN, track="T1"))
    bench.update(IMAGE, layout(CUP, PEN, track="T1", name="b"))
    bench.update(IMAGE, layout(CUP, track="T3", name="c"))
    assert bench.compute() == {
        "T1": {"mIoU": pytest.approx(0.75), "accuracy": 0.5},
        "T3": {"mIoU": pytest.approx(0.5), "accuracy": 1.0},
        "average": {"mIoU": pytest.approx(0.625), "accuracy": 0.75},
    }


def test_instdiff_bench_counts_as_coco():
    scores = {"a red cup": 0.2, "a blue pen": 0.4}
    bench = InstDiffBench(
        detector(HALF_CUP, PEN_FOUND, ("dog", (0, 0, 9, 9), 0.99)),
        judge("a red cup"),
        lambda crops, captions: [scores[caption] for caption in captions],
    )
    bench.update(IMAGE, layout(CUP, PEN))
    figures = bench.compute()
    # The cup counts at a threshold of 0.5 alone, of ten; both areas are of 32² to 96² pixels.
    expected = {"AP": 55.0, "AP50": 100.0, "AP_m": 55.0, "AR": 55.0, "accuracy": 0.5, "CLIP": 0.3}
    assert figures == pytest.approx(expected, abs=1e-6)


def test_instdiff_bench_counts_what_is_found_too_much():
    bench = InstDiffBench(detector(PEN_FOUND, ("pen", (0, 0, 40, 100), 0.95)))
    bench.update(IMAGE, layout(PEN))
    assert bench.compute()["AP50"] == pytest.approx(50.0, abs=1e-6)


def test_instdiff_bench_means_are_of_pictures():
    bench = InstDiffBench(detector(HALF_CUP, PEN_FOUND), judge("a red cup"))
    bench.update(IMAGE, layout(CUP, PEN))
    bench.update(IMAGE, layout(CUP, name="b"))
    assert bench.compute()["accuracy"] == 0.75


def test_nothing_found_is_zero():
    bench = InstDiffBench(detector())
    bench.update(IMAGE, layout(CUP))
    assert bench.compute() == {"AP": 0.0, "AP50": 0.0, "AR": 0.0}


@pytest.mark.parametrize("bench", [MIGBench, ROICtrlBench, InstDiffBench])
def test_a_layout_must_have_instances(bench):
    with pytest.raises(DataError, match="'a' has no instances"):
        bench(detector(), judge()).update(IMAGE, layout())


def test_crops_have_at_least_a_pixel():
    assert crop(IMAGE, Instance((0.25, 0.5, 0.5, 1.0), "x")).size == (25, 50)
    assert crop(IMAGE, Instance((0.999, 0.999, 0.9995, 1.0), "x")).size == (1, 1)


@pytest.mark.parametrize(
    ("rgb", "colour"),
    [
        ((220, 20, 20), "red"),
        ((20, 20, 220), "blue"),
        ((20, 200, 20), "green"),
        ((230, 230, 20), "yellow"),
        ((250, 250, 250), "white"),
        ((5, 5, 5), "black"),
        ((120, 70, 20), "brown"),
    ],
)
def test_colours_are_told_by_their_share_of_the_box(rgb, colour):
    image = PIL.Image.new("RGB", (10, 10), (127, 127, 127))
    image.paste(rgb, (0, 0, 10, 2))
    of = Instance(LEFT, "thing", "thing", colour)
    assert ColourJudge()([image], [of]) == [True]
    assert ColourJudge(0.21)([image], [of]) == [False]
    rows = np.arange(10)[:, None].repeat(10, 1)
    assert ColourJudge(0.6, lambda crop: rows < 3)([image], [of]) == [True]
    other = "green" if colour != "green" else "red"
    assert ColourJudge()([image], [Instance(LEFT, "thing", "thing", other)]) == [False]


def test_an_attribute_that_is_no_colour_is_named():
    with pytest.raises(UserError, match="'a big cup' has the attribute 'big', which is no colour"):
        ColourJudge()([IMAGE], [Instance(LEFT, "a big cup", "cup", "big")])
