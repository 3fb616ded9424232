"""The augmentation of linear probing."""

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from torchvision.transforms import functional as F

from visattn.zoo.registry import register_all

register_all()


@pytest.fixture
def boxes(monkeypatch):
    """Crops that were taken, (top, left, height, width) of each."""
    taken, original = [], F.resized_crop

    def record(image, top, left, height, width, *args, **kwargs):
        taken.append((top, left, height, width))
        return original(image, top, left, height, width, *args, **kwargs)

    monkeypatch.setattr(F, "resized_crop", record)
    return taken


@pytest.mark.parametrize("size", [(100, 100), (40, 160)])
def test_crops_once_within_the_image(boxes, size):
    transform = TRANSFORMS.build({"type": "ProbeTrainTransform", "img_size": 32})
    image = Image.fromarray(np.zeros((*size, 3), np.uint8))
    for seed in range(200):
        torch.manual_seed(seed)
        assert transform(image).size == (32, 32)
    top, left, height, width = np.array(boxes).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    share, ratio = height * width / (size[0] * size[1]), width / height
    assert 0.05 < share.min() < 0.2
    if size[0] == size[1]:
        assert share.max() > 0.85
        assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    else:
        # What does not fit is cut, and not drawn again.
        assert (height == size[0]).any() and share.max() < 0.6


def test_flips_half_of_them():
    transform = TRANSFORMS.build(
        {"type": "ProbeTrainTransform", "img_size": 8, "scale": (1, 1), "ratio": (1, 1)}
    )
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    image = Image.fromarray(pixels)
    flipped = sum(np.asarray(transform(image))[0, 0, 0] == 0 for _ in range(200))
    assert 70 < flipped < 130
