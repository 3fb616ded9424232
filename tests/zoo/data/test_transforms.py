"""Crops of resized images."""

import numpy as np
import pytest
import torch
from PIL import Image

from visattn.zoo.data.transforms import ResizeCropTransform
from visattn.zoo.errors import ConfigError


@pytest.fixture
def ramp():
    """An image of 40 x 20 pixels whose red rises to the right and whose green falls downwards."""
    rows, columns = np.mgrid[:20, :40].astype(np.uint8)
    return Image.fromarray(np.stack([50 + 4 * columns, 200 - 5 * rows, 0 * rows], -1))


def test_evaluation_squashes_and_takes_the_centre(ramp):
    out = ResizeCropTransform((20, 10), resize=(28, 14))(ramp)
    assert out.size == (10, 20)
    whole = ramp.resize((14, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(whole.crop((2, 4, 12, 24))))


def test_training_crops_the_padded_image_and_mirrors_it(ramp):
    transform = ResizeCropTransform((20, 40), is_training=True, padding=4)
    torch.manual_seed(0)
    found = [np.asarray(transform(ramp)).astype(int) for _ in range(40)]
    assert all(x.shape == (20, 40, 3) for x in found)
    rises = [np.median(np.diff(x[10, 5:-5, 0])) > 0 for x in found]
    assert 0 < sum(rises) < 40
    offsets = {int((x[:, 20, 0] == 0).sum()) for x in found}
    assert len(offsets) > 2 and max(offsets) <= 4


def test_mirroring_can_be_off(ramp):
    transform = ResizeCropTransform((20, 40), is_training=True, hflip=0.0)
    assert all(np.array_equal(transform(ramp), np.asarray(ramp)) for _ in range(10))


def test_a_crop_must_fit():
    with pytest.raises(ConfigError, match="no room for a crop"):
        ResizeCropTransform(64, resize=32)
