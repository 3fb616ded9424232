"""Agent Attention's hosts against what the authors' code has and computes."""

import re
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from _rules import count, fill, polynomial, summary

from visattn.backbones import agent_swin
from visattn.backbones._agent import (
    AgentAttention,
    SpatialReductionAttention,
    convert_biases,
    pool_agents,
)
from visattn.backbones.agent_cswin import CrossShapedAttention, StripeConv
from visattn.backbones.agent_deit import ClassTokenAgentAttention
from visattn.backbones.agent_swin import WindowAttention
from visattn.kernels.agent_attention.reference import dense_bias
from visattn.zoo.checkpoint import load_checkpoint

# Parameters, and those without the classifier.
PARAMETERS = {
    "agent_deit_tiny": (6_015_640, 5_822_640),
    "agent_deit_small": (22_647_112, 22_262_112),
    "agent_deit_small_448": (23_070_472, 22_685_472),
    "agent_deit_base": (87_204_904, 86_435_904),
    "agent_pvt_tiny": (11_570_352, 11_057_352),
    "agent_pvt_small": (20_635_066, 20_122_066),
    "agent_pvt_medium": (35_921_746, 35_408_746),
    "agent_pvt_medium_256": (36_083_682, 35_570_682),
    "agent_pvt_large": (48_738_180, 48_225_180),
    "agent_swin_tiny": (28_902_964, 28_133_964),
    "agent_swin_small": (49_666_684, 48_897_684),
    "agent_swin_small_288": (49_707_964, 48_938_964),
    "agent_swin_base": (88_095_096, 87_070_096),
    "agent_swin_base_384": (88_305_016, 87_280_016),
    "agent_cswin_tiny": (20_458_672, 19_945_672),
    "agent_cswin_small": (32_814_100, 32_301_100),
    "agent_cswin_base": (73_249_696, 72_480_696),
    "agent_cswin_base_384": (73_328_416, 72_559_416),
}
# Logits for weights and images by rule.
LOGITS = {
    "agent_deit_tiny": (5.51947895, 1.52953013, 0.70696596, 0.32335019, 0.23220459, -9.483125,
                        33.641281),
    "agent_pvt_tiny": (15.53767461, 2.43824741, 0.26460577, -1.09889594, -4.01626586, 53.401745,
                       91.892205),
    "agent_swin_tiny": (8.49594203, 0.93460306, -2.61925880, -0.51960978, 1.64663160, 41.775848,
                        34.160948),
    "agent_cswin_tiny": (9.12600195, 2.23045615, -0.13008148, -1.17848610, -1.02703834, 48.674242,
                         33.881149),
}  # fmt: skip
MORE_LOGITS = {
    "agent_deit_small": (8.81778876, -1.63698610, 0.36333967, -0.26238216, -1.29037676,
                         -25.764028, 34.923907),
    "agent_deit_base": (10.05713483, -0.39295974, -0.49557817, -0.02829024, 0.80839541, 13.432915,
                        33.422479),
    "agent_pvt_small": (20.49255990, 3.70969069, 3.52604090, -4.32230275, -5.13026982, 62.767412,
                        131.756921),
    "agent_pvt_medium": (20.06387491, 4.02678983, 3.34463207, -5.40005760, -5.26525395, 51.536369,
                         129.722558),
    "agent_pvt_medium_256": (20.31859160, 3.75038600, 2.83770223, -5.44359798, -5.07380286,
                             42.252861, 129.421983),
    "agent_pvt_large": (20.86112723, 4.88277559, 2.54942833, -6.10593113, -4.83860739, 35.517223,
                        128.702515),
    "agent_swin_small": (8.36829078, 0.38352244, -2.17795000, -0.11936886, 1.44972106, 26.332393,
                         34.277792),
    "agent_swin_base": (12.54861356, -1.30577156, -0.36815801, -0.18141502, 1.07508070, -11.040470,
                        35.506892),
    "agent_cswin_small": (10.30430678, 2.63931549, -0.38971552, -1.01966231, -1.45241184,
                          33.602201, 34.677986),
    "agent_cswin_base": (11.71426895, -1.33697961, -0.72834283, 1.13896930, 0.14265382, 10.859770,
                         34.718845),
}  # fmt: skip


def by_rule(shapes):
    """An official state dict: the values of ``fill`` for official names and shapes."""
    module = torch.nn.Module()
    for key, shape in shapes.items():
        empty = torch.empty(shape, dtype=torch.float64)
        module.register_parameter(key.replace(".", "/"), torch.nn.Parameter(empty))
    values = {}
    for key, parameter in module.named_parameters():
        holder = torch.nn.Module()
        leaf = key.rpartition("/")[2]
        holder.register_parameter(leaf, parameter)
        values[key.replace("/", ".")] = getattr(fill(holder), leaf).detach()
    return values


def official_biases(key, shape):
    """Official name and shape of one of our biases; any other name and shape as they are."""
    path, _, part = key.rpartition(".")
    if not path.endswith(("key_bias", "query_bias")):
        return key, tuple(shape)
    path, _, side = path.rpartition(".")
    heads, agents, *rest = shape
    if part == "block":
        return f"{path}.{'an' if side == 'key_bias' else 'na'}_bias", tuple(shape)
    token = {"rows": "h", "columns": "w", "prefix": "c"}[part]
    (length,) = rest
    if side == "key_bias":
        last = {"rows": (length, 1), "columns": (1, length), "prefix": (1,)}[part]
        return f"{path}.a{token}_bias", (1, heads, agents, *last)
    last = {"rows": (length, 1), "columns": (1, length), "prefix": (1,)}[part]
    return f"{path}.{token}a_bias", (1, heads, *last, agents)


OFFICIAL_NAMES = {
    "agent_deit": [
        (r"^stem\.(cls_token|pos_embed)$", r"\1"),
        (r"^stem\.", "patch_embed."),
        (r"^stages\.(\d+)\.blocks\.0\.", r"blocks.\1."),
    ],
    "agent_pvt": [
        (r"^stem\.pos_embed$", "pos_embed1"),
        (r"^stem\.", "patch_embed1."),
        (r"^stages\.(\d)\.downsample\.pos_embed$", lambda m: f"pos_embed{int(m[1]) + 1}"),
        (r"^stages\.(\d)\.downsample\.", lambda m: f"patch_embed{int(m[1]) + 1}."),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"block{int(m[1]) + 1}."),
    ],
    "agent_swin": [
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stem\.norm\.", "patch_embed.norm."),
        (r"^stages\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample."),
        (r"^stages\.", "layers."),
        (r"\.rpb$", ".relative_position_bias_table"),
    ],
    "agent_cswin": [
        (r"^stem\.conv\.", "stage1_conv_embed.0."),
        (r"^stem\.norm\.", "stage1_conv_embed.2."),
        (r"^stages\.(\d)\.downsample\.reduction\.", r"merge\1.conv."),
        (r"^stages\.(\d)\.downsample\.norm\.", r"merge\1.norm."),
        (r"^stages\.(\d)\.blocks\.", lambda m: f"stage{int(m[1]) + 1}."),
        (r"\.attn\.(qkv|proj)\.", r".\1."),
        (r"\.attn\.lepe\.(\d)\.", r".attns.\1.get_v."),
        (r"\.attn\.dwc\.", ".attns.0.get_v."),
        (r"\.attn\.", ".attns.0."),
    ],
}  # fmt: skip


def official_shapes(name):
    """What the official model of a name has, worked out from ours."""
    model = timm.create_model(name, device="meta")
    rules = next(rules for family, rules in OFFICIAL_NAMES.items() if name.startswith(family))
    shapes = {}
    for key, parameter in model.named_parameters():
        key, shape = official_biases(key, parameter.shape)
        if key == "stem.cls_pos_embed":
            continue
        if key.endswith(".pos_embed"):
            tokens = shape[1] * shape[2] + name.startswith("agent_deit")
            shape = (1, tokens, shape[3])
        if key.endswith(".rpb"):
            shape = (shape[1] * shape[2], shape[0])
        if name.startswith("agent_pvt") and ".qkv." in key:
            q, kv = (shape[0] // 3, *shape[1:]), (shape[0] // 3 * 2, *shape[1:])
            parts = [(key.replace("qkv", "q"), q), (key.replace("qkv", "kv"), kv)]
        else:
            parts = [(key, shape)]
        for part, part_shape in parts:
            for pattern, replacement in rules:
                part = re.sub(pattern, replacement, part)
            shapes[part.replace("head.fc.", "head.")] = part_shape
    return shapes


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert (count(model), count(model) - count(model.head)) == PARAMETERS[name]


def test_parameter_count_of_the_parts():
    swin = timm.create_model("agent_swin_tiny", device="meta")
    downsampling = [count(stage.downsample) for stage in swin.stages[1:]] + [0]
    layers = [
        count(stage.blocks) + after for stage, after in zip(swin.stages, downsampling, strict=True)
    ]
    assert layers == [317_484, 1_230_336, 12_395_856, 14_183_856]
    assert count(swin.stem) == 4_896
    assert [count(stage.blocks[0]) for stage in swin.stages[:3]] == [121_494, 466_944, 1_868_856]

    pvt = timm.create_model("agent_pvt_tiny", device="meta")
    assert [count(s.blocks) for s in pvt.stages] == [173_092, 675_712, 2_547_780, 6_413_792]
    first = [count(stage.blocks[0]) for stage in pvt.stages]
    assert first == [86_546, 337_856, 1_273_890, 3_206_896]
    embeddings = [pvt.stem, *(stage.downsample for stage in pvt.stages[1:])]
    positions = [embedding.pos_embed.numel() for embedding in embeddings]
    assert positions == [200_704, 100_352, 62_720, 25_088]
    patches = [count(e) - n for e, n in zip(embeddings, positions, strict=True)]
    assert patches == [3_264, 33_152, 164_800, 656_896]

    cswin = timm.create_model("agent_cswin_tiny", device="meta")
    assert [count(s.blocks) for s in cswin.stages] == [112_840, 851_968, 14_261_760, 3_157_504]
    assert count(cswin.stem) == 9_600
    merges = [count(stage.downsample) for stage in cswin.stages[1:]]
    assert merges == [74_112, 295_680, 1_181_184]

    deit = timm.create_model("agent_deit_tiny", device="meta")
    assert {count(stage) for stage in deit.stages} == {469_716}


def test_agents_are_where_the_paper_has_them():
    def agents(name):
        stages = timm.create_model(name, device="meta").stages
        return [sum(isinstance(m, AgentAttention) for m in stage.modules()) for stage in stages]

    assert agents("agent_deit_base") == [1] * 4 + [0] * 8
    assert agents("agent_swin_base") == [2, 2, 2, 0]
    assert agents("agent_swin_small") == [2, 2, 0, 0]
    assert agents("agent_pvt_tiny") == [2, 2, 2, 2]
    assert not list(timm.create_model("agent_pvt_tiny", device="meta").norm.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *LOGITS.items(),
        *(pytest.param(*item, marks=pytest.mark.heavy, id=item[0]) for item in MORE_LOGITS.items()),
    ],
)
def test_logits_by_rule(name, expected):
    model = timm.create_model(name).eval()
    model.load_state_dict(by_rule(official_shapes(name)), strict=True)
    side = model.pretrained_cfg["input_size"][1]
    with torch.inference_mode():
        actual = summary(model(12**0.5 * polynomial((1, 3, side, side)).float()))
    expected = torch.tensor(expected)
    torch.testing.assert_close(actual[:5], expected[:5], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(actual[5:], expected[5:], rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("name", ["agent_deit_t", "agent_pvt_t", "agent_swin_t", "agent_cswin_t"])
def test_official_names_and_shapes(name, golden):
    """Those that the tests above work out are those recorded."""
    floats = {
        k: tuple(shape) for k, (shape, dtype) in golden(name).keys.items() if "float" in dtype
    }
    model = {"t": "tiny"}[name[-1]]
    assert official_shapes(f"{name[:-2]}_{model}") == floats


def test_shifted_windows_of_a_recorded_model(golden, golden_image, monkeypatch):
    """Recorded with attention masks that the rule had filled, like all entries; so these apply."""
    record = golden("agent_swin_s_288")
    masks = iter([value for key, value in record.state_dict.items() if "attn_mask" in key])

    def attend(q, k, v, side, shift, bias, shift_small_maps):
        height, width = q.shape[1:3]
        if shift and min(height, width) > side:
            bias = bias + next(masks)[:, None]
        else:
            shift = 0

        def windows(x):
            x = x.roll((-shift, -shift), (1, 2)).unflatten(2, (-1, side)).unflatten(1, (-1, side))
            return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).transpose(2, 3)

        out = F.scaled_dot_product_attention(*map(windows, (q, k, v)), attn_mask=bias)
        out = out.transpose(2, 3).unflatten(2, (side, side))
        out = out.unflatten(1, (height // side, width // side)).transpose(2, 3)
        return out.flatten(3, 4).flatten(1, 2).roll((shift, shift), (1, 2))

    monkeypatch.setattr(agent_swin, "window_attention", attend)
    model = timm.create_model("agent_swin_small_288").eval()
    assert count(model) == record.params
    model.load_state_dict(record.state_dict, strict=True)
    expected = torch.from_numpy(record.outputs["logits288"])
    with torch.inference_mode():
        actual = model(golden_image(record.inputs["logits288"]))
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert next(masks, None) is None


def official_module(module, **shapes):
    """Fills one of our attention modules by the rule of official names and shapes."""
    values = by_rule({f"attn.{key}": shape for key, shape in shapes.items()})
    converted = convert_biases(values)
    module.double()
    module.load_state_dict({key.removeprefix("attn."): v for key, v in converted.items()})
    return module


def bias_shapes(agents, size=(6, 6), key_size=None, heads=2):
    (height, width), (rows, columns) = size, key_size or size
    return {
        "an_bias": (heads, agents, 7, 7),
        "na_bias": (heads, agents, 7, 7),
        "ah_bias": (1, heads, agents, rows, 1),
        "aw_bias": (1, heads, agents, 1, columns),
        "ha_bias": (1, heads, height, 1, agents),
        "wa_bias": (1, heads, 1, width, agents),
    }


def linear(name, out, inputs=8):
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


SHARED = {**linear("proj", 8), "dwc.weight": (8, 1, 3, 3), "dwc.bias": (8,)}
JOINED = {**linear("qkv", 24), **SHARED}


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        (9, (0.59096230, 0.35115142, 0.63273968, -0.59678064, 0.48223174, 6.427132, 9.611799)),
        (16, (0.78874900, 0.27808061, 0.52743042, -0.57447193, 0.49450668, 2.628470, 9.654415)),
    ],
)
def test_module_equals_the_official_one(agents, expected):
    """The second has bins that overlap."""
    attn = official_module(AgentAttention(8, 2, 6, agents), **bias_shapes(agents), **JOINED)
    out = attn(12**0.5 * polynomial((1, 36, 8)).unflatten(1, (6, 6)))
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(summary(out), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (1, (0.48159377, 1.22722656, 0.25587139, -0.85634152, -0.21220703, 6.549545, 9.100231)),
        (2, (0.12008827, 1.40751065, 0.10313588, -1.03147732, 0.43638077, -0.101703, 12.789274)),
    ],
)
def test_module_of_pvt_equals_the_official_one(ratio, expected):
    """Queries and keys have projections of their own; keys may be reduced."""
    values = by_rule({**linear("q", 8), **linear("kv", 16)})
    side = 6 // ratio
    shapes = {**bias_shapes(9, key_size=(side, side)), **SHARED}
    if ratio > 1:
        shapes |= {"sr.weight": (8, 8, ratio, ratio), "sr.bias": (8,)}
        shapes |= {"norm.weight": (8,), "norm.bias": (8,)}
    values |= by_rule(shapes)
    if ratio == 1:
        for leaf in ("weight", "bias"):
            parts = (values.pop(f"{name}.{leaf}") for name in ("q", "kv"))
            values[f"qkv.{leaf}"] = torch.cat(list(parts))
    values = convert_biases({f"attn.{key}": value for key, value in values.items()})
    values = {key.removeprefix("attn."): value for key, value in values.items()}
    for leaf in ("weight", "bias") if ratio > 1 else ():
        values[f"reduction.conv.{leaf}"] = values.pop(f"sr.{leaf}")
        values[f"reduction.norm.{leaf}"] = values.pop(f"norm.{leaf}")
    attn = AgentAttention(8, 2, 6, 9, sr_ratio=ratio, dtype=torch.float64)
    attn.load_state_dict(values)
    out = attn(12**0.5 * polynomial((1, 36, 8)).unflatten(1, (6, 6)))
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(summary(out), wanted, rtol=1e-6, atol=1e-5)


def class_token_attention():
    shapes = {**bias_shapes(9), "ac_bias": (1, 2, 9, 1), "ca_bias": (1, 2, 1, 9), **JOINED}
    return official_module(ClassTokenAgentAttention(8, 2, 6, num_agents=9), **shapes)


def test_module_of_deit_equals_the_official_one():
    out = class_token_attention()(12**0.5 * polynomial((1, 37, 8)), (6, 6))
    expected = (0.22082952, -0.00069858, 0.64205964, -0.08932974, -0.03308787, 5.723763, 9.705482)
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(summary(out), wanted, rtol=1e-6, atol=1e-6)


def test_class_token_without_bias_reaches_no_patch():
    """It is pooled into no agent and not convolved: agents see it as a key, or not at all."""
    attn = class_token_attention()
    attn.key_bias.prefix.data.fill_(-1e9)
    x = torch.randn(1, 37, 8, dtype=torch.float64)
    y = torch.cat([x[:, :1] + 1, x[:, 1:]], 1)
    a, b = attn(x, (6, 6)), attn(y, (6, 6))
    torch.testing.assert_close(a[:, 1:], b[:, 1:], rtol=0, atol=0)
    assert (a[:, :1] - b[:, :1]).abs().max() > 1e-3


def random_attention(**kwargs):
    attn = AgentAttention(
        16, 2, **{"map_size": 6, "num_agents": 9, "dtype": torch.float64} | kwargs
    )
    for parameter in attn.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attn


def biases(attn, size):
    """Dense biases (heads, n, N) and (heads, N, n) of a map."""
    key, query = (table(size, attn.agent_shape) for table in (attn.key_bias, attn.query_bias))
    return dense_bias(key), dense_bias(query).transpose(1, 2)


def test_module_is_two_attentions_and_a_convolution():
    attn = random_attention()
    x = torch.randn(2, 6, 6, 16, dtype=torch.float64)
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 8)).flatten(1, 2).permute(2, 0, 3, 1, 4)
    maps = attn.qkv(x)[..., :16].permute(0, 3, 1, 2)
    agents = F.adaptive_avg_pool2d(maps, 3).unflatten(1, (2, 8)).flatten(3).transpose(2, 3)
    to_agents, from_agents = biases(attn, (6, 6))
    values = F.scaled_dot_product_attention(agents, k, v, attn_mask=to_agents)
    out = F.scaled_dot_product_attention(q, agents, values, attn_mask=from_agents)
    out = out.transpose(1, 2).reshape(2, 6, 6, 16)
    local = F.conv2d(
        attn.qkv(x)[..., 32:].permute(0, 3, 1, 2), attn.dwc.weight, attn.dwc.bias, 1, 1, 1, 16
    )
    torch.testing.assert_close(attn(x), attn.proj(out + local.permute(0, 2, 3, 1)))


def test_without_logits_every_token_gets_the_mean():
    attn = random_attention()
    attn.qkv.weight.data[:32].zero_()
    attn.qkv.bias.data[:32].zero_()
    for table in (attn.key_bias, attn.query_bias):
        for parameter in table.parameters():
            parameter.data.zero_()
    x = torch.randn(1, 6, 6, 16, dtype=torch.float64)
    v = attn.qkv(x)[..., 32:]
    torch.testing.assert_close(attn(x), attn.proj(v.mean((1, 2), keepdim=True) + attn.dwc(v)))


def test_constant_values_are_kept():
    attn = random_attention()
    attn.qkv.weight.data[32:].zero_()
    attn.dwc.weight.data.zero_()
    attn.dwc.bias.data.zero_()
    out = attn(torch.randn(1, 6, 6, 16, dtype=torch.float64))
    torch.testing.assert_close(out, attn.proj(attn.qkv.bias[32:]).expand_as(out))


@pytest.mark.parametrize(
    ("size", "count", "bins"),
    [
        (56, 3, [(0, 19), (18, 38), (37, 56)]),
        (14, 9, [(0, 2), (1, 4), (3, 5), (4, 7), (6, 8), (7, 10), (9, 11), (10, 13), (12, 14)]),
        (7, 7, [(i, i + 1) for i in range(7)]),
    ],
)
def test_agents_average_over_bins(size, count, bins):
    x = torch.randn(1, size, size, 4, dtype=torch.float64)
    agents = pool_agents(x, (count, count)).unflatten(1, (count, count))
    for i, (top, bottom) in enumerate(bins):
        for j, (left, right) in enumerate(bins):
            wanted = x[:, top:bottom, left:right].mean((1, 2))
            torch.testing.assert_close(agents[:, i, j], wanted)


@pytest.mark.parametrize("size", [(7, 9), (3, 2), (20, 27)])
def test_exported_pooling_is_the_same(size, monkeypatch):
    x = torch.randn(2, *size, 4, dtype=torch.float64)
    wanted = pool_agents(x, (4, 3))
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(pool_agents(x, (4, 3)), wanted)


def dense_reference(table, size, agent_shape):
    """Official biases at run time of dense models: (heads, n', N), put together then resized."""
    grid, heads = table.agent_grid, len(table.rows)
    total = table.rows[..., None] + table.columns[:, :, None]

    def resize(x):
        x = F.interpolate(x, size, mode="bilinear").flatten(2)  # (heads, n, N)
        x = x.transpose(1, 2).reshape(heads, -1, *grid)
        return F.interpolate(x, agent_shape, mode="bilinear").flatten(2).transpose(1, 2)

    return resize(table.block) + resize(total)


@pytest.mark.parametrize("agent_shape", [(3, 3), (5, 5), (2, 4)])
@pytest.mark.parametrize("size", [(6, 6), (20, 27), (3, 5)])
def test_biases_of_another_map_are_those_of_the_dense_models(size, agent_shape):
    attn = random_attention(agent_shape=agent_shape)
    for table in (attn.key_bias, attn.query_bias):
        wanted = dense_reference(table, size, agent_shape)
        actual = dense_bias(table(size, agent_shape))
        torch.testing.assert_close(actual, wanted)


def test_a_dense_module_is_that_of_classification_where_sizes_agree():
    attn, dense = random_attention(), random_attention(agent_shape=(3, 3))
    dense.load_state_dict(attn.state_dict())
    x = torch.randn(1, 6, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(dense(x), attn(x), rtol=0, atol=0)
    wide = torch.randn(1, 20, 27, 16, dtype=torch.float64)
    assert random_attention(agent_shape=(9, 9))(wide).shape == wide.shape


def test_resized_biases_are_kept_until_a_parameter_changes():
    attn = random_attention().eval()
    x = torch.randn(1, 9, 5, 16, dtype=torch.float64)
    wanted = attn(x).detach()
    with torch.inference_mode():
        torch.testing.assert_close(attn(x), wanted)
        kept = attn.key_bias((9, 5), (3, 3))
        assert attn.key_bias((9, 5), (3, 3)) is kept
        assert attn.key_bias((6, 6), (3, 3)).rows is attn.key_bias.rows
    with torch.no_grad():
        attn.key_bias.rows.add_(torch.randn_like(attn.key_bias.rows))
        changed = attn(x)
    torch.testing.assert_close(changed, attn(x).detach())
    assert (changed - wanted).abs().max() > 1e-3


def test_changing_the_size_resizes_linearly():
    attn = random_attention()
    rows, block = attn.query_bias.rows.detach().clone(), attn.query_bias.block.detach().clone()
    x = torch.randn(1, 9, 12, 16, dtype=torch.float64)
    wanted = attn(x)
    attn.set_map_size((9, 12))
    resized = F.interpolate(rows, 9, mode="linear")
    torch.testing.assert_close(attn.query_bias.rows.data, resized)
    torch.testing.assert_close(attn.query_bias.block.data, block)
    torch.testing.assert_close(attn(x), wanted)


@pytest.mark.parametrize("name", ["agent_deit_tiny", "agent_pvt_tiny", "agent_swin_tiny",
                                  "agent_cswin_tiny"])  # fmt: skip
def test_input_size_may_be_set(name):
    kwargs = {"depth": 2} if "deit" in name else {"depths": (1, 1, 1, 1)}
    model = timm.create_model(name, num_classes=5, **kwargs).eval()
    x = torch.randn(1, 3, 64, 96)
    wanted = model(x)
    model.set_input_size((64, 96))
    again = timm.create_model(name, num_classes=5, img_size=(64, 96), **kwargs)
    shapes = {key: value.shape for key, value in again.state_dict().items() if ".rpb" not in key}
    assert shapes == {k: v.shape for k, v in model.state_dict().items() if ".rpb" not in k}
    # Positions of PVT are resized bilinearly on the way, and bicubically for good.
    tolerance = 0.05 if "pvt" in name else 1e-4
    assert (model(x) - wanted).abs().max() < tolerance * wanted.abs().max()


def test_another_size_loads_resized(golden):
    record = golden("agent_swin_t")
    model = timm.create_model("agent_swin_tiny", img_size=288)
    model.load_state_dict(record.state_dict, strict=True)
    key = "layers.0.blocks.0.attn"
    ah = record.state_dict[f"{key}.ah_bias"][0, ..., 0]
    wa = record.state_dict[f"{key}.wa_bias"][0, :, 0].transpose(1, 2)
    attn = model.stages[0].blocks[0].attn
    resize = {"size": 72, "mode": "linear"}
    torch.testing.assert_close(attn.key_bias.rows.data, F.interpolate(ah, **resize))
    torch.testing.assert_close(attn.query_bias.columns.data, F.interpolate(wa, **resize))
    an = record.state_dict[f"{key}.an_bias"]
    torch.testing.assert_close(attn.key_bias.block.data, an, rtol=0, atol=0)
    table = record.state_dict["layers.3.blocks.0.attn.relative_position_bias_table"]
    table = table.T.reshape(1, 24, 13, 13)
    wanted = F.interpolate(table, (17, 17), mode="bicubic")[0].flip(1, 2)
    torch.testing.assert_close(model.stages[3].blocks[0].attn.rpb.data, wanted)


def test_other_agents_load_resized(golden):
    record = golden("agent_pvt_t")
    model = timm.create_model("agent_pvt_tiny", num_agents=(16, 16, 49, 49))
    model.load_state_dict(record.state_dict, strict=True)
    block = record.state_dict["block1.0.attn.na_bias"]  # (1, 9, 7, 7)
    grid = block.flatten(2).transpose(1, 2).reshape(1, 49, 3, 3)
    wanted = F.interpolate(grid, (4, 4), mode="bilinear").flatten(2).transpose(1, 2)
    actual = model.stages[0].blocks[0].attn.query_bias.block
    torch.testing.assert_close(actual.data.flatten(2), wanted)


def test_positions_of_deit_are_resized_without_that_of_the_class_token(golden):
    record = golden("agent_deit_t")
    model = timm.create_model("agent_deit_tiny", img_size=(448, 320), patch_size=16)
    model.load_state_dict(record.state_dict, strict=True)
    positions = record.state_dict["pos_embed"]
    torch.testing.assert_close(model.stem.cls_pos_embed.data, positions[:, :1], rtol=0, atol=0)
    maps = positions[:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    wanted = F.interpolate(maps, (28, 20), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(model.stem.pos_embed.data, wanted)


def test_positions_of_pvt_are_resized_bilinearly_at_run_time():
    model = timm.create_model("agent_pvt_tiny", depths=(1, 1, 1, 1))
    x = torch.randn(1, 3, 64, 128)
    stem = model.stem
    patches = stem.norm(stem.proj(x).permute(0, 2, 3, 1))
    positions = F.interpolate(stem.pos_embed.permute(0, 3, 1, 2), (16, 32), mode="bilinear")
    torch.testing.assert_close(stem(x), patches + positions.permute(0, 2, 3, 1))


def test_pvt_may_have_blocks_of_spatial_reduction():
    model = timm.create_model("agent_pvt_tiny", agent_depths=(1, 1, 2, 0), num_classes=5)
    attn = model.stages[0].blocks[1].attn
    assert isinstance(attn, SpatialReductionAttention) and not isinstance(attn, AgentAttention)
    x = torch.randn(1, 16, 8, 64)
    reduced = attn.reduction(x)
    assert reduced.shape == (1, 2, 1, 64)
    (k, v), q = attn.kv(reduced.flatten(1, 2)).chunk(2, -1), attn.q(x.flatten(1, 2))
    wanted = attn.proj(F.scaled_dot_product_attention(q, k, v)).reshape(x.shape)
    torch.testing.assert_close(attn(x), wanted)
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 5)


def masked_attention(q, k, v, same, bias=0.0):
    """Full attention of maps to the tokens that belong together, by a mask (N, N)."""
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    return (logits.masked_fill(~same, float("-inf")).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("size", [(14, 14), (9, 20), (5, 30)])
def test_stripes_attend_to_themselves(size):
    """Also the last one, which may be less wide; and convolutions do not see the next stripe."""
    attn = CrossShapedAttention(8, 2, split_size=7).double()
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    qkv = attn.qkv(x).unflatten(-1, (3, 2, 1, 4))
    y, column = (i.flatten() for i in torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    out = []
    for i, line in enumerate((column // 7, y // 7)):
        q, k, v = qkv[:, :, :, :, i].unbind(3)
        part = masked_attention(q, k, v, line[:, None] == line).reshape(1, *size, 4)
        stripes = [
            F.pad((v[0, ..., 0, :] * (line.view(size) == s)[..., None]), (0, 0, 1, 1, 1, 1))
            for s in range(int(line.max()) + 1)
        ]
        lepe = attn.lepe[i]
        for s, stripe in enumerate(stripes):
            local = F.conv2d(stripe.permute(2, 0, 1)[None], lepe.weight, lepe.bias, groups=4)
            part = part + local.permute(0, 2, 3, 1) * (line.view(size) == s)[..., None]
        out.append(part)
    torch.testing.assert_close(attn(x), attn.proj(torch.cat(out, -1)))


def test_a_stage_of_one_stripe_attends_to_the_whole_map():
    attn = CrossShapedAttention(8, 2, split_size=None).double()
    x = torch.randn(1, 5, 9, 8, dtype=torch.float64)
    q, k, v = attn.qkv(x).unflatten(-1, (3, 2, 4)).unbind(3)
    everything = torch.ones(45, 45, dtype=torch.bool)
    out = masked_attention(q, k, v, everything).reshape(1, 5, 9, 8)
    torch.testing.assert_close(attn(x), attn.proj(out + attn.lepe[0](v.flatten(3))))


def test_windows_are_shifted_only_on_maps_larger_than_them():
    x = torch.randn(1, 7, 12, 8)
    plain, shifted = (WindowAttention(8, 2, 7, shifted=s) for s in (False, True))
    shifted.load_state_dict(plain.state_dict())
    torch.testing.assert_close(shifted(x), plain(x))
    x = torch.randn(1, 8, 12, 8)
    assert (shifted(x) - plain(x)).abs().max() > 1e-4


def test_padding_of_windows_is_attended_to():
    """As in Swin: padding has the bias as key and value."""
    attn = WindowAttention(8, 2, 7)
    torch.nn.init.normal_(attn.qkv.bias)
    x = torch.randn(1, 5, 6, 8)
    padded = F.pad(x, (0, 0, 0, 1, 0, 2))
    torch.testing.assert_close(attn(x), attn(padded)[:, :5, :6])


def test_stripe_convolution_of_one_stripe_is_plain():
    conv = StripeConv(4, split_size=9)
    whole = StripeConv(4)
    whole.load_state_dict(conv.state_dict())
    x = torch.randn(1, 6, 9, 4)
    torch.testing.assert_close(conv(x), whole(x))


NAMES = {
    "agent_deit_t": "agent_deit_tiny",
    "agent_pvt_t": "agent_pvt_tiny",
    "agent_swin_t": "agent_swin_tiny",
    "agent_cswin_t": "agent_cswin_tiny",
}


@pytest.mark.parametrize("record", NAMES)
def test_features_only_loads_the_authors_file(record, golden, tmp_path):
    torch.save({"model": golden(record).state_dict}, tmp_path / "official.pth")
    features = timm.create_model(NAMES[record], features_only=True, out_indices=(0, 2))
    assert load_checkpoint(features, tmp_path / "official.pth").is_whole


@pytest.mark.parametrize("record", ["agent_pvt_t", "agent_swin_t"])
def test_files_of_dense_prediction_load(record, golden):
    official = golden(record).state_dict
    wrapped = {f"backbone.{k}": v for k, v in official.items() if not k.startswith("head")}
    model = timm.create_model(NAMES[record], num_classes=0)
    if record == "agent_swin_t":
        wrapped = {k: v for k, v in wrapped.items() if not k.startswith("backbone.norm.")}
        wrapped |= {f"backbone.norm{i}.weight": torch.ones(96 * 2**i) for i in range(4)}
    converted = model.convert_state_dict(model, {"state_dict": wrapped})
    own = {key for key in model.state_dict() if not key.startswith("norm.")}
    outputs = {f"norm{i}.weight" for i in range(4)} if record == "agent_swin_t" else set()
    assert converted.keys() - own == outputs and own <= converted.keys()


def test_averaged_weights_come_first(golden, tmp_path):
    """As timm takes them, and as CSWin's figures are."""
    averaged = golden("agent_cswin_t").state_dict
    raw = {key: torch.zeros_like(value) for key, value in averaged.items()}
    torch.save({"model": raw, "state_dict_ema": averaged}, tmp_path / "cswin.pth")
    models = [timm.create_model("agent_cswin_tiny") for _ in range(2)]
    load_checkpoint(models[0], tmp_path / "cswin.pth")
    models[1].load_state_dict(torch.load(tmp_path / "cswin.pth"))
    models.append(timm.create_model("agent_cswin_tiny", checkpoint_path=tmp_path / "cswin.pth"))
    for model in models:
        torch.testing.assert_close(model.head.fc.bias.data, averaged["head.bias"])


def test_files_with_a_yacs_configuration_load(golden, tmp_path, monkeypatch):
    """Without yacs, and without running code from the file."""
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict):
        pass

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = package.config = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = CfgNode(MODEL=CfgNode(NAME="agent_deit_tiny", DROP_PATH_RATE=0.0))
    config.__dict__["__immutable__"] = True
    official = golden("agent_deit_t").state_dict
    content = {"model": official, "config": config, "epoch": 299, "max_accuracy": 74.9}
    torch.save(content, tmp_path / "deit.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    read = torch.load(tmp_path / "deit.pth", weights_only=True)
    assert type(read["config"]) is OrderedDict and read["config"]["MODEL"]["DROP_PATH_RATE"] == 0
    model = timm.create_model("agent_deit_tiny", checkpoint_path=tmp_path / "deit.pth")
    torch.testing.assert_close(model.head.fc.bias.data, official["head.bias"])
    assert load_checkpoint(timm.create_model("agent_deit_tiny"), tmp_path / "deit.pth").is_whole


def test_weight_decay_is_the_authors():
    """Not of tables of windows, and of DeiT's positions; but of agents' biases and PVT's."""
    swin = timm.create_model("agent_swin_tiny", device="meta")
    assert swin.no_weight_decay() == {f"stages.3.blocks.{i}.attn.rpb" for i in range(2)}
    assert not timm.create_model("agent_pvt_tiny", device="meta").no_weight_decay()
    deit = timm.create_model("agent_deit_tiny", device="meta")
    own = dict(deit.named_parameters())
    assert sum(own[name].numel() for name in deit.no_weight_decay()) == 198 * 192


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_deit_classifies_what_is_pooled(pool):
    model = timm.create_model("agent_deit_tiny", depth=1, num_classes=5, global_pool=pool).eval()
    tokens = model.forward_features(torch.randn(2, 3, 64, 48))
    assert tokens.shape == (2, 13, 192)
    pooled = tokens[:, 0] if pool == "token" else tokens[:, 1:].mean(1)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), pooled)
    torch.testing.assert_close(model.forward_head(tokens), model.head.fc(pooled))


def test_preprocessing_is_the_authors():
    cfg = {name: timm.get_pretrained_cfg(name) for name in PARAMETERS}
    assert {c.crop_mode for c in cfg.values()} == {"squash"}
    whole = {name for name, c in cfg.items() if c.crop_pct == 1}
    assert whole == {"agent_swin_small_288", "agent_swin_base_384", "agent_cswin_base_384"}
    config = timm.data.resolve_data_config(pretrained_cfg=cfg["agent_swin_tiny"].to_dict())
    image = timm.data.create_transform(**config)(_gradient_image(300, 200))
    assert image.shape == (3, 224, 224)
    middle = torch.tensor(cfg["agent_swin_tiny"].mean[0])
    left = image[0, 112, 0] * cfg["agent_swin_tiny"].std[0] + middle
    assert abs(float(left) - 16 / 256) < 0.01  # a sixteenth of the width is cropped on each side


def _gradient_image(width, height):
    from PIL import Image

    line = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(line[None, :, None], (height, width, 3)).copy())


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("agent_swin_tiny", {"num_agents": (9, 16, 48, 49)}, "square number.*got 48"),
        ("agent_swin_tiny", {"embed_dim": 40}, "embed_dim 40 must be divisible by head_dim 32"),
        ("agent_swin_tiny", {"agent_depths": (1,)}, "agent_depths must have one entry for each"),
        ("agent_pvt_tiny", {"sr_ratios": (8,)}, "sr_ratios must have one entry for each of 4"),
        ("agent_pvt_tiny", {"head_dim": 48}, "must be divisible by head_dim 48"),
        ("agent_cswin_tiny", {"num_heads": (3, 4, 8, 16)}, "divisible by num_heads 3"),
        ("agent_deit_tiny", {"global_pool": "cls"}, "global_pool must be 'token'"),
        ("agent_deit_tiny", {"embed_dim": 100}, "embed_dim 100 must be divisible by head_dim 64"),
    ],
)
def test_impossible_arguments_are_named(name, bad, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, device="meta", **bad)
