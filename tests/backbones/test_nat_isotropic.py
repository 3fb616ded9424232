"""Isotropic NAT and DiNAT and ViT-rpb against what the authors' code has and computes."""

import pytest
import timm
import torch
from _rules import count, fill, polynomial, summary

from visattn.backbones.nat_isotropic import BiasedAttention, checkpoint_filter_fn
from visattn.kernels import neighborhood_attention

PARAMETERS = {
    "nat_isotropic_small": 21_999_736,
    "nat_isotropic_base": 86_465_800,
    "dinat_isotropic_small": 21_999_736,
    "dinat_isotropic_base": 86_465_800,
    "vitrpb_small": 22_080_376,
    "vitrpb_base": 86_627_080,
}
# Logits for weights and images by rule.
LOGITS = {
    "nat_isotropic_small": (8.36590797, -1.90539971, 0.58634355, -0.57742873, -1.07303401,
                            -33.486671, 33.876803),
    "dinat_isotropic_small": (8.36723342, -1.93713854, 0.57359594, -0.53518780, -1.07941340,
                              -34.187306, 33.973794),
    "vitrpb_small": (8.35427089, -1.94644676, 0.51510823, -0.46550106, -1.12077404, -33.726193,
                     33.988809),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert count(model) == PARAMETERS[name]
    if name == "nat_isotropic_small":
        assert {count(stage) for stage in model.stages} == {1_776_492}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_by_rule(name):
    model = fill(timm.create_model(name)).eval()
    with torch.inference_mode():
        actual = summary(model(12**0.5 * polynomial((1, 3, 224, 224)).float()))
    expected = torch.tensor(LOGITS[name])
    torch.testing.assert_close(actual[:5], expected[:5], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(actual[5:], expected[5:], rtol=1e-5, atol=1e-2)


def test_full_attention_is_that_of_a_window_as_large_as_the_map():
    attn = BiasedAttention(16, 2, map_size=5)
    x = torch.randn(2, 5, 5, 16)
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 8)).unbind(3)
    wanted = attn.proj(neighborhood_attention(q, k, v, 5, rpb=attn.rpb).flatten(3))
    torch.testing.assert_close(attn(x), wanted)


def test_bias_tables_take_maps_of_another_size():
    attn = BiasedAttention(16, 2, map_size=4)
    table = torch.nn.functional.interpolate(attn.rpb[None], (5, 11), mode="bicubic")[0]
    bias = attn.bias(3, 6)
    assert bias.shape == (2, 18, 18)
    torch.testing.assert_close(bias[:, 0, 17], table[:, 4, 10])  # from first to last
    torch.testing.assert_close(bias[:, 17, 0], table[:, 0, 0])
    torch.testing.assert_close(bias[:, 7, 7], table[:, 2, 5])


def test_dilations_alternate():
    model = timm.create_model("dinat_isotropic_small", device="meta")
    assert [stage.blocks[0].attn.dilation for stage in model.stages] == [1, 2] * 6


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_tables_of_indices_are_dropped(prefix, golden):
    record = golden("vitrpb_small")
    model = timm.create_model("vitrpb_small", device="meta")
    converted = checkpoint_filter_fn(
        {prefix + key: value for key, value in record.state_dict.items()}, model
    )
    assert converted.keys() == model.state_dict().keys()
