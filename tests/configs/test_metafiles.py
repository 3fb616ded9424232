"""What the metafiles say of the recipes holds."""

from pathlib import Path

import pytest
import timm
import torch
import yaml

import visattn
from visattn.zoo.config import load_config
from visattn.zoo.reid.model import ReIdentifier
from visattn.zoo.results import SOURCES

ROOT = Path(visattn.__file__).parent
MODELS = [
    (path, model)
    for path in sorted((ROOT / "configs").rglob("metafile.yml"))
    for model in yaml.safe_load(path.read_text())["Models"]
]


@pytest.mark.parametrize(("path", "model"), MODELS, ids=[model["Name"] for _, model in MODELS])
def test_entry_is_complete_and_its_recipe_exists(path, model):
    collections = {c["Name"] for c in yaml.safe_load(path.read_text())["Collections"]}
    assert model["In Collection"] in collections
    assert Path(model["Config"]).stem == model["Name"]
    assert (ROOT / model["Config"]).is_file()
    for result in model["Results"]:
        assert result["Task"] and result["Dataset"]
        assert result["Source"] in SOURCES
        assert all(0 < value <= 100 for value in result["Metrics"].values())


@pytest.mark.parametrize(
    "model",
    [
        model
        for path, model in MODELS
        if {"classification", "fine_grained", "reid"} & set(path.parts)
    ],
    ids=lambda model: model["Name"],
)
def test_networks_have_the_stated_number_of_parameters(model):
    cfg = load_config(ROOT / model["Config"]).model.to_dict()
    backbone = {key: value for key, value in cfg["backbone"].items() if key != "pretrained"}
    with torch.device("meta"):
        if cfg["type"] == "ReIdentifier":
            network = ReIdentifier(backbone, cfg["num_classes"])
        else:
            network = timm.create_model(**backbone)
    assert sum(p.numel() for p in network.parameters()) == model["Metadata"]["Parameters"]
