"""Efficient local attention and its networks against their definition, torchvision and timm."""

import copy

import pytest
import timm
import torch
import torchvision
from _rules import count
from timm.layers.coord_attn import EfficientLocalAttn
from torch import nn

from visattn.backbones.ela import (
    PRESETS,
    EfficientLocalAttention,
    checkpoint_filter_fn,
    ela_b,
    ela_l,
    ela_s,
    ela_t,
)
from visattn.zoo.checkpoint import CheckpointError, load_checkpoint

LAYERS = {"t": ela_t, "b": ela_b, "s": ela_s, "l": ela_l}
# Parameters for each channel that a layer gates.
FACTORS = {"t": 7, "b": 9, "s": 42, "l": 58}
# Parameters without attention, and channels that all layers gate, by position.
NETWORKS = {
    "elaresnet18": (11_689_512, {"mid": 1_920, "out": 1_920}),
    "elaresnet34": (21_797_672, {"mid": 3_776, "out": 3_776}),
    "elaresnet50": (25_557_032, {"mid": 3_776, "out": 15_104}),
    "elaresnet101": (44_549_160, {"mid": 8_128, "out": 32_512}),
}
MODULES = {"elaresnet18_b": 8, "elaresnet50_s": 16, "elamobilenetv2_100_l": 16}


def randomize(layer):
    """Gives the norms of a layer, or of the layers of a network, other values than the initial."""
    for name, p in layer.named_parameters():
        if ".gn." in f".{name}":
            nn.init.normal_(p, std=0.5)
    return layer


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, EfficientLocalAttention)]


@pytest.mark.parametrize(
    ("preset", "expected"), [("t", 448), ("b", 576), ("s", 2_688), ("l", 3_712)]
)
def test_parameter_count_of_the_layer(preset, expected):
    layer = LAYERS[preset](64)
    assert count(layer) == expected
    assert count(LAYERS[preset](96)) == 96 * FACTORS[preset]
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    width, kernel = PRESETS[preset]["group_width"], PRESETS[preset]["kernel_size"]
    assert shapes == {
        "conv.weight": (64, width, kernel),
        "gn.weight": (64,),
        "gn.bias": (64,),
    }


@pytest.mark.parametrize("position", ["mid", "out"])
@pytest.mark.parametrize("preset", "tbsl")
@pytest.mark.parametrize("network", NETWORKS)
def test_parameter_count_of_resnets(network, preset, position):
    plain, channels = NETWORKS[network]
    model = timm.create_model(f"{network}_{preset}", position=position, device="meta")
    assert count(model) == plain + channels[position] * FACTORS[preset]


@pytest.mark.parametrize(
    ("preset", "expected"), [("b", 3_568_808), ("s", 3_803_240), ("l", 3_916_904)]
)
def test_parameter_count_of_mobilenets(preset, expected):
    assert count(timm.create_model(f"elamobilenetv2_100_{preset}", device="meta")) == expected


@pytest.mark.parametrize("name", MODULES)
def test_number_of_layers(name):
    assert len(layers_of(timm.create_model(name, device="meta"))) == MODULES[name]


@pytest.mark.parametrize("preset", "tbsl")
def test_without_convolution_both_gates_are_a_half(preset):
    layer = LAYERS[preset](32)
    nn.init.zeros_(layer.conv.weight)
    x = torch.randn(2, 32, 6, 9)
    torch.testing.assert_close(layer(x), x / 4, rtol=0, atol=0)


@pytest.mark.parametrize(("bias", "factor"), [(30.0, 1.0), (-30.0, 0.0)])
def test_gates_open_and_close_by_the_bias(bias, factor):
    layer = ela_b(32)
    nn.init.zeros_(layer.gn.weight)
    nn.init.constant_(layer.gn.bias, bias)
    x = torch.randn(2, 32, 6, 9)
    torch.testing.assert_close(layer(x), factor * x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("preset", "tbsl")
def test_transposing_commutes(preset):
    """The layer of timm, with a convolution for each direction, has not this."""
    layer = randomize(LAYERS[preset](32))
    x = torch.randn(2, 32, 6, 9)
    torch.testing.assert_close(layer(x.mT), layer(x).mT, rtol=1e-5, atol=2e-6)
    other = EfficientLocalAttn(32)
    assert (other(x.mT) - other(x).mT).abs().max() > 0.1


@pytest.mark.parametrize("preset", "tbsl")
def test_gates_shrink_and_keep_signs(preset):
    x = torch.randn(2, 32, 6, 9)
    out = randomize(LAYERS[preset](32))(x)
    assert (out.abs() <= x.abs()).all() and (out * x >= 0).all()


def test_borders_differ_on_constant_maps():
    """By the zeros around; and not with a kernel of one."""
    x = torch.ones(1, 32, 9, 12)
    out = randomize(EfficientLocalAttention(32, 3))(x)
    torch.testing.assert_close(out[..., 1:-1, 1:-1], out[..., 1:2, 1:2].expand(1, 32, 7, 10))
    assert (out[..., 0, 5] - out[..., 4, 5]).abs().max() > 1e-3
    out = randomize(EfficientLocalAttention(32, 1))(x)
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))


def test_flipping_the_kernel_flips_columns():
    layer = randomize(EfficientLocalAttention(32, share=False))
    flipped = copy.deepcopy(layer)
    flipped.conv_w.weight.data = layer.conv_w.weight.flip(-1)
    x = torch.randn(2, 32, 6, 9)
    torch.testing.assert_close(flipped(x.flip(-1)), layer(x).flip(-1))
    assert (layer(x.flip(-1)) - layer(x).flip(-1)).abs().max() > 1e-3


def test_gate_has_rank_one():
    x = torch.rand(2, 32, 6, 9, dtype=torch.float64) + 0.5
    gate = randomize(ela_s(32, dtype=torch.float64))(x) / x
    values = torch.linalg.svdvals(gate)
    assert (values[..., 0] > 0.01).all() and (values[..., 1] < 1e-12).all()


def test_images_of_a_batch_do_not_mix():
    layer = randomize(ela_s(32)).train()
    x = torch.randn(3, 32, 6, 9)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


@pytest.mark.parametrize(
    ("layer", "changed"),
    [
        (EfficientLocalAttention(64, 5, gn_groups=32), range(10, 12)),
        (ela_b(64), range(8, 12)),
        (ela_s(64), range(8, 16)),  # of the convolution's group
        (EfficientLocalAttention(64, 7, group_width=8, gn_groups=4), range(0, 16)),
    ],
)
def test_channels_mix_in_groups_alone(layer, changed):
    layer = randomize(layer)
    x = torch.randn(1, 64, 6, 9)
    other = x.clone()
    other[:, 10] += torch.randn(6, 9)
    difference = (layer(other) - layer(x)).abs().amax((0, 2, 3))
    assert difference.nonzero().flatten().tolist() == list(changed)


@pytest.mark.parametrize("residual", [False, True])
def test_tied_layer_of_timm_agrees(residual):
    ours = randomize(ela_b(32, residual=residual))
    norm_layer = lambda channels, **dd: nn.GroupNorm(16, channels, **dd)  # noqa: E731
    theirs = EfficientLocalAttn(
        32, 7, act_layer=nn.Identity, norm_layer=norm_layer, has_skip=residual
    )
    weight = ours.conv.weight.data
    theirs.conv_h.weight.data, theirs.conv_w.weight.data = weight[..., None], weight[:, :, None]
    theirs.norm_h = theirs.norm_w = ours.gn
    x = torch.randn(2, 32, 6, 9)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_shared_gradients_are_the_sums_of_both_directions():
    shared = randomize(ela_b(32))
    apart = EfficientLocalAttention(32, share=False)
    for suffix in "hw":
        getattr(apart, f"conv_{suffix}").load_state_dict(shared.conv.state_dict())
        getattr(apart, f"gn_{suffix}").load_state_dict(shared.gn.state_dict())
    x, grad = torch.randn(2, 32, 6, 9), torch.randn(2, 32, 6, 9)
    torch.testing.assert_close(shared(x), apart(x))
    shared(x).backward(grad)
    apart(x).backward(grad)
    for name, p in shared.named_parameters():
        module, _, kind = name.partition(".")
        h, w = (apart.get_parameter(f"{module}_{suffix}.{kind}").grad for suffix in "hw")
        assert h.any() and w.any()
        torch.testing.assert_close(p.grad, h + w)


def test_a_step_changes_every_parameter():
    layer = ela_b(32)
    assert count(layer) == 288
    before = copy.deepcopy(layer)
    layer(torch.randn(2, 32, 6, 9)).square().mean().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    for p, q in zip(layer.parameters(), before.parameters(), strict=True):
        assert (p != q).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_maps_smaller_than_the_kernel(size):
    layer = randomize(ela_l(32))
    x = torch.randn(2, 32, *size)
    padded = torch.conv1d(x.mean(3), layer.conv.weight, padding=3, groups=4)
    gate_h = layer.gn(padded).sigmoid()
    gate_w = layer.gn(layer.conv(x.mean(2))).sigmoid()
    torch.testing.assert_close(layer(x), x * gate_h[..., None] * gate_w[:, :, None])


@pytest.mark.parametrize(
    ("name", "kwargs", "places"),
    [
        ("resnet26", {"block_args": {"attn_layer": ela_s}}, 8),
        ("efficientnet_b0", {"se_layer": ela_b}, 16),
    ],
)
def test_timms_own_networks_take_the_layer(name, kwargs, places):
    model = timm.create_model(name, num_classes=5, **kwargs)
    assert len(layers_of(model)) == places
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def open_gates(model):
    """Makes the attention of a network the identity."""
    for layer in layers_of(model):
        nn.init.zeros_(layer.gn.weight)
        nn.init.constant_(layer.gn.bias, 100.0)
    return model.eval()


def settle(model):
    """Gives batch norms statistics of their own."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "theirs", "kwargs"),
    [
        ("elaresnet18_t", torchvision.models.resnet18, {}),
        ("elaresnet50_b", torchvision.models.resnet50, {}),
        ("elaresnet50_s", torchvision.models.resnet50, {"position": "out"}),
        ("elamobilenetv2_100_b", torchvision.models.mobilenet_v2, {}),
        ("elamobilenetv2_100_l", lambda: timm.create_model("mobilenetv2_100"), {}),
    ],
)
def test_plain_weights_load_and_open_gates_give_the_plain_network(name, theirs, kwargs, tmp_path):
    theirs = settle(theirs())
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    ours = timm.create_model(name, checkpoint_path=tmp_path / "plain.pth", **kwargs)
    assert all((layer.gn.weight == 1).all() for layer in layers_of(ours))
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        expected = theirs(x)
        actual = open_gates(ours)(x)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


class OfficialAttention(nn.Module):
    """The released layer, as its definition says."""

    def __init__(self, channels, kernel_size, groups, gn_groups):
        super().__init__()
        self.conv = nn.Conv1d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.gn = nn.GroupNorm(gn_groups, channels)

    def forward(self, x):
        h, w = (self.gn(self.conv(x.mean(dim))).sigmoid() for dim in (3, 2))
        return x * h.unsqueeze(3) * w.unsqueeze(2)


def official_bottleneck(block, **kwargs):
    block.feat1 = OfficialAttention(block.conv2.out_channels, **kwargs)

    def forward(x):
        out = block.relu(block.bn1(block.conv1(x)))
        out = block.relu(block.bn2(block.conv2(out)))
        out = block.bn3(block.conv3(out + block.feat1(out)))
        return block.relu(out + (x if block.downsample is None else block.downsample(x)))

    block.forward = forward


def official_basic_block(block, **kwargs):
    block.feat0 = OfficialAttention(block.conv2.out_channels, **kwargs)

    def forward(x):
        out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        out = out + block.feat0(out)
        return block.relu(out + (x if block.downsample is None else block.downsample(x)))

    block.forward = forward


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize(
    ("name", "theirs", "attach"),
    [
        ("elaresnet18_s", torchvision.models.resnet18, official_basic_block),
        ("elaresnet50_s", torchvision.models.resnet50, official_bottleneck),
    ],
)
def test_weights_of_the_released_segmentation_load(name, theirs, attach, prefix):
    theirs = theirs()
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        for block in stage:
            width = block.conv2.out_channels
            attach(block, kernel_size=5, groups=width // 8, gn_groups=16)
    randomize(settle(theirs))
    ours = timm.create_model(name, attn_residual=True).eval()
    state_dict = {prefix + key: value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state_dict, strict=True)
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        actual, expected = ours(x), theirs(x)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def official_mobilenet(attention):
    """MobileNetV2 in the layout of the released training, from torchvision's parts."""
    plain = torchvision.models.mobilenet_v2()
    stem, *blocks, last = plain.features
    official = nn.Module()
    official.features = nn.Sequential(nn.Sequential(*stem), *blocks)
    for block in blocks:
        parts = [
            layer
            for part in block.conv
            for layer in (part if isinstance(part, nn.Sequential) else [part])
        ]
        if len(parts) == 8 and attention:
            parts.insert(6, OfficialAttention(parts[3].out_channels, **attention))
        block.conv = nn.Sequential(*parts)
    official.conv = nn.Sequential(*last)
    official.classifier = plain.classifier
    official.forward = lambda x: official.classifier(
        official.conv(official.features(x)).mean((2, 3))
    )
    return official


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_the_released_training_load(prefix, tmp_path):
    theirs = randomize(
        settle(official_mobilenet({"kernel_size": 7, "groups": 12, "gn_groups": 16}))
    )
    state_dict = {prefix + key: value for key, value in theirs.state_dict().items()}
    assert f"{prefix}features.2.conv.6.conv.weight" in state_dict
    torch.save({"state_dict": state_dict}, tmp_path / "official.pth")
    ours = timm.create_model(
        "elamobilenetv2_100_b",
        attn_args={"groups": 12},
        checkpoint_path=tmp_path / "official.pth",
    )
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        actual, expected = ours.eval()(x), theirs(x)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_weights_of_the_released_training_without_attention_load():
    theirs = settle(official_mobilenet(None))
    ours = timm.create_model("elamobilenetv2_100_b")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        actual, expected = open_gates(ours)(x), theirs(x)
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["elaresnet18_b", "elamobilenetv2_100_b"])
def test_features_only_loads_a_whole_classifier(name, tmp_path):
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    features = timm.create_model(name, features_only=True, out_indices=(1, 3))
    assert load_checkpoint(features, tmp_path / "whole.pth").is_whole
    ours = {key: p for key, p in features.model.named_parameters() if ".se." in key}
    assert ours
    for key, p in ours.items():
        torch.testing.assert_close(p, whole.get_parameter(key))


def test_part_of_the_attention_is_refused(tmp_path):
    state_dict = timm.create_model("elaresnet18_b").state_dict()
    del state_dict["layer3.0.se.gn.weight"]
    torch.save(state_dict, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing: layer3\.0\.se\.gn\.weight"):
        load_checkpoint(timm.create_model("elaresnet18_b"), tmp_path / "part.pth")


def test_another_variant_is_refused(tmp_path):
    torch.save(timm.create_model("elaresnet18_b").state_dict(), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match=r"b\.pth does not fit ELAResNet"):
        load_checkpoint(timm.create_model("elaresnet18_t"), tmp_path / "b.pth")


def test_our_names_are_kept():
    model = timm.create_model("elaresnet50_l", device="meta")
    own = model.state_dict()
    assert checkpoint_filter_fn(dict(own), model).keys() == own.keys()


def test_norm_of_32_groups_does_not_fit_mobilenets():
    with pytest.raises(ValueError, match="C=144 .*gn_fallback='gcd'"):
        timm.create_model("elamobilenetv2_100_b", preset="t")
    model = timm.create_model("elamobilenetv2_100_b", preset="t", attn_args={"gn_fallback": "gcd"})
    assert {layer.gn_groups for layer in layers_of(model)} == {16, 32}
    assert count(model) == 3_504_872 + 7 * 7_104


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd; got 4"),
        ({"groups": 8, "group_width": 8}, "not both"),
        ({"groups": 5}, "groups 5 does not divide 32"),
        ({"group_width": 5}, "group_width 5 does not divide 32"),
        ({"gn_groups": 5}, "gn_groups 5 does not divide C=32"),
        ({"gn_fallback": "lcm"}, "gn_fallback must be"),
    ],
)
def test_impossible_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        EfficientLocalAttention(32, **bad)


@pytest.mark.parametrize(
    ("bad", "message"), [({"preset": "m"}, "preset must be"), ({"position": "in"}, "position must")]
)
def test_impossible_networks_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("elaresnet50_b", device="meta", **bad)
