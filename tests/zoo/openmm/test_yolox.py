"""YOLOX-Nano with ELA as it was released: 657 tensors of 929,843 elements."""

import pytest
import torch

from visattn.zoo.checkpoint import CheckpointError
from visattn.zoo.config import load_config
from visattn.zoo.models import build_configured
from visattn.zoo.openmm.convert import has_heads, load_dense_checkpoint

CONFIG = "configs/detection/ela/yolox-nano-ela-t_72e_voc0712.py"
WIDTHS = (64, 128, 256)


def conv(name, into, out, kernel=1, groups=1):
    yield f"{name}.conv.weight", (out, into // groups, kernel, kernel)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.bn.{part}", (out,)
    yield f"{name}.bn.num_batches_tracked", ()


def separable(name, into, out):
    yield from conv(f"{name}.dconv", into, into, 3, groups=into)
    yield from conv(f"{name}.pconv", into, out)


def partial_block(name, into, out, depth):
    half = out // 2
    yield from conv(f"{name}.conv1", into, half)
    yield from conv(f"{name}.conv2", into, half)
    yield from conv(f"{name}.conv3", out, out)
    for i in range(depth):
        yield from conv(f"{name}.m.{i}.conv1", half, half)
        yield from separable(f"{name}.m.{i}.conv2", half, half)


def plain(name, into, out):
    yield f"{name}.weight", (out, into, 1, 1)
    yield f"{name}.bias", (out,)


def network(classes=20):
    """Names and shapes of the authors' network, in the order of its code's modules."""
    root = "backbone.backbone"
    yield from conv(f"{root}.stem.conv", 12, 16, 3)
    for stage, (width, depth) in enumerate(zip((32, *WIDTHS), (1, 3, 3, 1), strict=True), 2):
        yield from separable(f"{root}.dark{stage}.0", width // 2, width)
        if stage == 5:
            yield from conv(f"{root}.dark5.1.conv1", width, width // 2)
            yield from conv(f"{root}.dark5.1.conv2", 2 * width, width)
        yield from partial_block(
            f"{root}.dark{stage}.{2 if stage == 5 else 1}", width, width, depth
        )
    yield from conv("backbone.lateral_conv0", 256, 128)
    yield from partial_block("backbone.C3_p4", 256, 128, 1)
    yield from conv("backbone.reduce_conv1", 128, 64)
    yield from partial_block("backbone.C3_p3", 128, 64, 1)
    yield from separable("backbone.bu_conv2", 64, 64)
    yield from partial_block("backbone.C3_n3", 128, 128, 1)
    yield from separable("backbone.bu_conv1", 128, 128)
    yield from partial_block("backbone.C3_n4", 256, 256, 1)
    for name, width in (("10", 1024), ("5", 512), ("1", 128), ("2", 256), ("06", 64)):
        yield f"backbone.feat{name}.conv.weight", (width, 1, 5)
        yield f"backbone.feat{name}.gn.weight", (width,)
        yield f"backbone.feat{name}.gn.bias", (width,)
    for i, width in enumerate(WIDTHS):
        yield from conv(f"head.stems.{i}", width, 64)
        for kind in ("cls", "reg"):
            yield from separable(f"head.{kind}_convs.{i}.0", 64, 64)
            yield from separable(f"head.{kind}_convs.{i}.1", 64, 64)
        for kind, out in (("cls", classes), ("reg", 4), ("obj", 1)):
            yield from plain(f"head.{kind}_preds.{i}", 64, out)


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    return {name: torch.rand(shape) if shape else torch.tensor(0) for name, shape in network()}


def test_released_network_has_as_many_entries(theirs):
    assert len(theirs) == 657
    assert sum(value.numel() for value in theirs.values()) == 929_843


@pytest.mark.parametrize("prefix", ["", "module."])
def test_loads_what_was_released(theirs, prefix, tmp_path):
    torch.save({prefix + key: value for key, value in theirs.items()}, tmp_path / "theirs.pth")
    model = build_configured(load_config(CONFIG))
    assert load_dense_checkpoint(model, tmp_path / "theirs.pth").is_whole
    ours = model.state_dict()
    for mine, name in (
        ("backbone.stage4.1.conv2.conv.weight", "backbone.backbone.dark5.1.conv2.conv.weight"),
        ("backbone.stage4.2.short_conv.bn.bias", "backbone.backbone.dark5.2.conv2.bn.bias"),
        ("neck.bottom_up_blocks.0.final_conv.conv.weight", "backbone.C3_n3.conv3.conv.weight"),
        ("neck.attention.0.conv.weight", "backbone.feat06.conv.weight"),
        ("bbox_head.multi_level_conv_obj.2.bias", "head.obj_preds.2.bias"),
    ):
        assert torch.equal(ours[mine], theirs[name]), name


def test_heads_are_seen(theirs):
    assert has_heads(torch.nn.Module(), theirs)


def test_weights_of_another_layer_are_refused(theirs, tmp_path):
    torch.save(theirs, tmp_path / "theirs.pth")
    model = build_configured(load_config(CONFIG, {"model.neck.preset": "l"}))
    with pytest.raises(CheckpointError, match=r"attention\.0\.conv\.weight"):
        load_dense_checkpoint(model, tmp_path / "theirs.pth")
