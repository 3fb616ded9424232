"""Attention in OpenMMLab's necks and blocks."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from visattn.zoo.registry import register_all

register_all("mmdet")
register_all("mmseg")

PLUGINS = [
    "AgentAttentionPlugin",
    "BiLevelRoutingAttentionPlugin",
    "ELAPlugin",
    "NeighborhoodAttentionPlugin",
]
ENCODER = {
    "type": "ELADilatedEncoder",
    "in_channels": 64,
    "out_channels": 32,
    "block_mid_channels": 8,
    "num_residual_blocks": 3,
    "block_dilations": [1, 2, 3],
}
PAFPN = {
    "type": "ELAPAFPN",
    "in_channels": [16, 32, 64],
    "out_channels": 16,
    "num_csp_blocks": 1,
    "use_depthwise": True,
}


def build(config, scope="mmdet"):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(dict(config))


class Gate(nn.Module):
    """Multiplies by a number and counts how often, in place of attention."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.widths = factor, []

    def forward(self, x):
        self.widths.append(x.shape[1])
        return x * self.factor


def gated(neck, factor):
    layers = nn.ModuleList(Gate(factor) for _ in neck.attention)
    neck.attention = layers
    return layers


def test_pafpn_without_attention_is_mmdets():
    ours = build(PAFPN).eval()
    gated(ours, 1.0)
    theirs = build({**PAFPN, "type": "YOLOXPAFPN"}).eval()
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.randn(2, c, 16 >> i, 24 >> i) for i, c in enumerate(PAFPN["in_channels"])]
    for a, b in zip(ours(maps), theirs(maps), strict=True):
        torch.testing.assert_close(a, b)


def test_pafpn_shares_a_levels_attention_with_concatenations_as_wide():
    neck = build(PAFPN)
    layers = gated(neck, 1.0)
    neck([torch.randn(1, c, 16 >> i, 16 >> i) for i, c in enumerate(PAFPN["in_channels"])])
    assert [layer.widths for layer in layers] == [[16], [32] * 3, [64] * 3]


def test_pafpn_refuses_levels_that_do_not_double():
    with pytest.raises(ValueError, match=r"must double from level to level; got \[16, 32, 96\]"):
        build({**PAFPN, "in_channels": [16, 32, 96]})


def test_encoder_is_mmdets_with_gates_around():
    ours = build(ENCODER).eval()
    theirs = build({**ENCODER, "type": "DilatedEncoder"}).eval()
    state = {k: v for k, v in ours.state_dict().items() if "attention" not in k}
    theirs.load_state_dict(state)
    x = torch.randn(2, 64, 7, 9)
    ours.input_attention = ours.projector_attention = Gate(2.0)
    ours.block_attention = nn.ModuleList(Gate(factor) for factor in (3.0, 0.5))
    expected = theirs.fpn_norm(theirs.fpn_conv(theirs.lateral_norm(theirs.lateral_conv(2 * x))))
    for block, factor in zip(theirs.dilated_encoder_blocks, (3.0, 0.5, 1.0), strict=True):
        expected = factor * block(factor * (expected if factor != 3.0 else 2 * expected))
    torch.testing.assert_close(ours([x])[0], expected)


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_works_in_a_resnet_at_any_size(scope, name):
    plugin = {
        "cfg": {"type": name},
        "stages": (False, False, True, True),
        "position": "after_conv2",
    }
    network = build(
        {"type": "ResNet", "depth": 50, "base_channels": 16, "plugins": [plugin]}, scope
    )
    maps = network(torch.randn(1, 3, 97, 130))
    assert [tuple(m.shape[-2:]) for m in maps] == [(25, 33), (13, 17), (7, 9), (4, 5)]
    sum(m.square().mean() for m in maps).backward()
    added = [
        p for n, m in network.named_modules() if type(m).__name__ == name for p in m.parameters()
    ]
    assert added and all(p.grad is not None for p in added)


@pytest.mark.parametrize("name", [name for name in PLUGINS if name != "ELAPlugin"])
def test_plugin_changes_nothing_at_first(name):
    plugin = MODELS.build({"type": name, "in_channels": 64})
    x = torch.randn(2, 64, 9, 11)
    torch.testing.assert_close(plugin(x), x)
    nn.init.ones_(plugin.scale)
    assert not torch.allclose(plugin(x), x)


def test_unknown_variant_of_ela_is_named():
    with pytest.raises(ValueError, match="preset must be one of 't', 'b', 's', 'l'; got 'x'"):
        MODELS.build({"type": "ELAPlugin", "in_channels": 64, "preset": "x"})
