"""Models against what the authors' code computes on weights made by a rule."""

from pathlib import Path

import pytest
import timm
import torch
from _rules import count

import visattn  # noqa: F401

GOLDENS = Path(__file__).parents[1] / "goldens"
MODELS = sorted(path.stem for path in GOLDENS.glob("*.json") if timm.is_model(path.stem))


@pytest.mark.parametrize("name", MODELS)
def test_golden_logits(name, golden, golden_image):
    record = golden(name)
    model = timm.create_model(name).eval()
    assert count(model) == record.params
    model.load_state_dict(record.state_dict, strict=True)
    expected = torch.from_numpy(record.outputs["logits224"])
    with torch.inference_mode():
        actual = model(golden_image(record.inputs["logits224"]))
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
