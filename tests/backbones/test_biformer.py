"""BiFormer against what the authors' code has and computes."""

import pytest
import timm
import torch
from _rules import count, fill, polynomial, summary

from visattn.backbones.biformer import (
    BiLevelRoutingAttention,
    FullAttention,
    checkpoint_filter_fn,
)
from visattn.zoo.checkpoint import CheckpointError, load_checkpoint

PARAMETERS = {
    "biformer_tiny": 13_142_760,
    "biformer_small": 25_536_232,
    "biformer_base": 56_804_968,
    "biformer_stl": 28_372_552,
    "biformer_stl_nchw": 28_372_552,
}
# Parameters of (stem, stages with the downsampling before them, final norm), from the sheet of
# official per-module counts.
PARTS = {
    "biformer_tiny": (19_584, 88_064, 74_112 + 339_968, 295_680 + 5_341_184,
                      1_181_184 + 5_288_960, 1_024),
    "biformer_small": (19_584, 176_128, 74_112 + 679_936, 295_680 + 12_017_664,
                       1_181_184 + 10_577_920, 1_024),
    "biformer_base": (43_200, 387_072, 166_464 + 1_511_424, 664_704 + 26_873_856,
                      2_656_512 + 23_731_200, 1_536),
    "biformer_stl": (4_896, 228_672, 74_112 + 899_712, 295_680 + 10_706_688,
                     1_181_184 + 14_211_072, 1_536),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert count(model) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARTS)
def test_parameter_count_of_the_parts(name):
    model = timm.create_model(name, device="meta")
    parts = (count(model.stem), *map(count, model.stages), count(model.norm))
    assert parts == PARTS[name]


@pytest.mark.parametrize(
    ("op", "size", "first", "last", "total", "norm"),
    [
        pytest.param(
            BiLevelRoutingAttention(8, 2, 2, 2, dtype=torch.float64), (4, 4),
            (0.78112871, 0.13320097, 0.58363543, -0.83987122), 0.46758797, -4.726100, 7.271920,
            id="legacy",
        ),
        pytest.param(
            BiLevelRoutingAttention(8, 2, 2, 2, dtype=torch.float64), (5, 6),
            (0.24598433, 0.19021346, 0.90852076, -0.40052602), 0.35962362, 10.619443, 8.924985,
            id="legacy-padded",
        ),
        pytest.param(
            BiLevelRoutingAttention(8, 2, 2, 2, pad_mode="zero", dtype=torch.float64), (5, 6),
            (-0.26900450, 0.26027536, 0.21889619, -0.42372016), 0.87056721, 12.623056, 10.560087,
            id="channels-first-padded",
        ),
        pytest.param(
            FullAttention(8, 2, dtype=torch.float64), (5, 6),
            (0.08715382, 0.64897976, 0.62549867, -0.79249828), 0.22959200, -5.063566, 9.799593,
            id="last-stage",
        ),
    ],
)  # fmt: skip
def test_operators_equal_the_official_ones(op, size, first, last, total, norm):
    shape = (1, *size, 8)
    image = 12**0.5 * polynomial(shape)
    wanted = torch.tensor((*first, last, total, norm), dtype=torch.float64)
    torch.testing.assert_close(summary(fill(op)(image)), wanted, rtol=1e-6, atol=1e-6)


def test_official_routing():
    op = fill(BiLevelRoutingAttention(8, 2, 2, 2, dtype=torch.float64))
    image = 12**0.5 * polynomial((1, 4, 4, 8))
    assert op.routing(image).tolist() == [[[2, 3], [3, 0], [2, 3], [1, 0]]]
    padded = 12**0.5 * polynomial((1, 5, 6, 8))
    assert op.routing(padded).tolist() == [[[2, 3], [2, 1], [3, 2], [1, 3]]]


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_prefixed_checkpoints_convert(prefix, golden):
    record = golden("biformer_tiny")
    model = timm.create_model("biformer_tiny", device="meta")
    converted = checkpoint_filter_fn(
        {prefix + key: value for key, value in record.state_dict.items()}, model
    )
    assert converted.keys() == model.state_dict().keys()


def test_channels_first_linear_layers_convert(golden):
    record = golden("biformer_stl")
    renamed = {
        key.replace("attn.qkv.qkv.", "attn.qkv_linear.").replace("attn.wo.", "attn.output_linear."):
            value[:, :, None, None] if value.ndim == 2 and not key.startswith("head") else value
        for key, value in record.state_dict.items()
    }  # fmt: skip
    model = timm.create_model("biformer_stl_nchw")
    model.load_state_dict(renamed, strict=True)
    weight = record.state_dict["stages.0.blocks.0.attn.qkv.qkv.weight"]
    torch.testing.assert_close(model.stages[0].blocks[0].attn.qkv.weight.data, weight)


def test_layer_scale_converts():
    converted = checkpoint_filter_fn(
        {"downsample_layers.1.0.bias": torch.zeros(1), "stages.2.0.gamma2": torch.zeros(1)}, None
    )
    assert set(converted) == {"stages.1.downsample.conv.bias", "stages.2.blocks.0.ls2.gamma"}


def test_timm_loads_the_authors_file(golden, tmp_path):
    record = golden("biformer_tiny")
    torch.save({"model": record.state_dict, "epoch": 299}, tmp_path / "biformer_tiny_best.pth")
    model = timm.create_model("biformer_tiny", checkpoint_path=tmp_path / "biformer_tiny_best.pth")
    torch.testing.assert_close(model.head.fc.weight.data, record.state_dict["head.weight"])


def test_features_only_loads_the_authors_file(golden, tmp_path):
    record = golden("biformer_tiny")
    torch.save({"model": record.state_dict}, tmp_path / "biformer_tiny_best.pth")
    features = timm.create_model("biformer_tiny", features_only=True, out_indices=(0, 2))
    report = load_checkpoint(features, tmp_path / "biformer_tiny_best.pth")
    assert report.is_whole
    weight = record.state_dict["stages.2.7.attn.wo.weight"]
    torch.testing.assert_close(features.model.stages[2].blocks[7].attn.proj.weight.data, weight)


def test_another_variant_is_refused(golden, tmp_path):
    torch.save({"model": golden("biformer_tiny").state_dict}, tmp_path / "tiny.pth")
    small = timm.create_model("biformer_small")
    before = small.head.fc.weight.clone()
    with pytest.raises(CheckpointError, match=r"tiny\.pth does not fit BiFormer: .* missing"):
        load_checkpoint(small, tmp_path / "tiny.pth")
    torch.testing.assert_close(small.head.fc.weight, before)


def test_fine_tuning_ignores_the_classifier(golden, tmp_path):
    torch.save({"model": golden("biformer_tiny").state_dict}, tmp_path / "tiny.pth")
    model = timm.create_model("biformer_tiny", num_classes=10)
    report = load_checkpoint(model, tmp_path / "tiny.pth", ignore=["head.fc."])
    assert [name for name, *_ in report.reshaped] == ["head.fc.weight", "head.fc.bias"]


def test_full_attention_without_queries_averages():
    """Zero projections attend uniformly to zero values: what is left is the local term."""
    for lepe_on in "xv":
        op = FullAttention(8, 2, lepe_on=lepe_on)
        torch.nn.init.zeros_(op.qkv.weight)
        x = torch.randn(1, 5, 6, 8)
        local = op.lepe(x if lepe_on == "x" else torch.zeros_like(x))
        torch.testing.assert_close(op(x), op.proj(local))


def test_without_local_enhancement_regions_may_roll():
    x = torch.randn(1, 8, 8, 8)
    rolls = {"shifts": (4, 2), "dims": (1, 2)}
    plain = BiLevelRoutingAttention(8, 2, n_win=4, topk=3, side_dwconv=0)
    torch.testing.assert_close(plain(x.roll(**rolls)), plain(x).roll(**rolls))
    enhanced = BiLevelRoutingAttention(8, 2, n_win=4, topk=3)
    assert (enhanced(x.roll(**rolls)) - enhanced(x).roll(**rolls)).abs().max() > 1e-3


@pytest.mark.parametrize("bad", [{"pad_mode": "wrap"}, {"num_heads": 3}])
def test_impossible_attention_is_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        BiLevelRoutingAttention(**({"dim": 8, "num_heads": 2} | bad))
