"""Models against what the authors' code computes on weights made by a rule."""

from pathlib import Path

import pytest
import timm
import torch
from _rules import count

import visattn  # noqa: F401

GOLDENS = Path(__file__).parents[1] / "goldens"
# Names of records that are not those of models. ``agent_swin_s_288`` was recorded without the masks
# of shifted windows, and has a test of its own in ``test_agent.py``.
NAMES = {
    "agent_deit_t": "agent_deit_tiny",
    "agent_pvt_t": "agent_pvt_tiny",
    "agent_swin_t": "agent_swin_tiny",
    "agent_cswin_t": "agent_cswin_tiny",
}
RECORDS = sorted(
    path.stem for path in GOLDENS.glob("*.json") if path.stem in NAMES or timm.is_model(path.stem)
)


@pytest.mark.parametrize("name", RECORDS)
def test_golden_logits(name, golden, golden_image):
    record = golden(name)
    model = timm.create_model(NAMES.get(name, name)).eval()
    assert count(model) == record.params
    model.load_state_dict(record.state_dict, strict=True)
    expected = torch.from_numpy(record.outputs["logits224"])
    with torch.inference_mode():
        actual = model(golden_image(record.inputs["logits224"]))
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
