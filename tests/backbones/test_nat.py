"""NAT, DiNAT and DiNAT_s against what the authors' code has and computes."""

import re

import pytest
import timm
import torch
from _rules import count, fill, polynomial, summary

from visattn.backbones.nat import NeighborhoodAttention, checkpoint_filter_fn
from visattn.zoo.checkpoint import CheckpointError, load_checkpoint

PARAMETERS = {
    "nat_mini": 19_984_174,
    "nat_tiny": 27_901_582,
    "nat_small": 50_743_297,
    "nat_base": 89_769_652,
    "dinat_mini": 19_984_174,
    "dinat_tiny": 27_901_582,
    "dinat_small": 50_719_681,
    "dinat_base": 89_769_652,
    "dinat_large": 200_943_514,
    "dinat_large_384": 200_943_514,
    "dinat_large_384_11x11": 201_144_250,
    "dinat_large_21k": 200_943_514,
    "dinat_large_21k_11x11": 201_144_250,
    "dinat_s_tiny": 28_288_354,
    "dinat_s_small": 49_606_258,
    "dinat_s_base": 87_768_224,
    "dinat_s_large": 196_532_476,
    "dinat_s_large_384": 196_532_476,
    "dinat_s_large_21k": 196_532_476,
}
# Parameters of official levels, which end with the downsampling that our next stage begins with.
LEVELS = {
    "nat_mini": (200_182, 959_632, 5_139_376, 13_151_440),
    "nat_base": (695_660, 3_296_544, 42_637_856, 42_036_640),
    "dinat_s_tiny": (299_190, 1_188_204, 11_841_672, 14_183_856),
}
# Logits for weights and images by rule.
LOGITS = {
    "nat_mini": (10.56509587, 2.35247296, 1.91575379, -1.67639501, -0.26841907, 18.656865,
                 33.458384),
    "dinat_mini": (10.57315345, 2.35854545, 1.89480820, -1.68252912, -0.27268557, 18.238685,
                   33.467858),
    "dinat_s_tiny": (8.31291341, 0.76135697, -2.06913639, -0.28060690, 1.24294023, 42.175628,
                     34.084700),
}  # fmt: skip
MORE_LOGITS = {
    "nat_tiny": (10.04731146, 2.40006602, 1.75511514, -2.17987577, -0.59850986, 15.394469,
                 33.981541),
    "nat_small": (7.04359598, 0.87699338, 0.23753926, -0.65343270, 0.23160256, 24.966905,
                  31.544648),
    "nat_base": (10.70083320, 1.06867256, 0.55452555, 0.12193902, -1.47722950, 11.502050,
                 30.687629),
    "dinat_tiny": (10.05171669, 2.41256796, 1.73917658, -2.18412460, -0.59662065, 15.345182,
                   33.994125),
    "dinat_small": (10.05629438, 0.09496138, -0.09639523, -0.56404030, -0.87982169, -30.022589,
                    33.530653),
    "dinat_base": (10.66785028, 1.05559345, 0.45697024, 0.21130153, -1.41688378, 12.915045,
                   30.616693),
    "dinat_large": (15.43604906, 0.09119860, 0.44546957, -1.52014364, -0.57212922, -8.240095,
                    36.414619),
    "dinat_s_small": (8.45793476, 0.40517046, -1.84699527, -0.07596938, 1.39928445, 22.169671,
                      34.232370),
    "dinat_s_base": (12.05132438, -1.41733510, -1.05167129, 0.17969081, 0.61911072, -10.284306,
                     35.353211),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = timm.create_model(name, device="meta")
    assert count(model) == PARAMETERS[name]
    assert count(model) - count(model.head) == PARAMETERS[name] - 1000 * (model.num_features + 1)


@pytest.mark.parametrize("name", LEVELS)
def test_parameter_count_of_the_levels(name):
    stages = list(timm.create_model(name, device="meta").stages)
    following = [stage.downsample for stage in stages[1:]] + [torch.nn.Identity()]
    levels = [
        count(stage.blocks, downsample) for stage, downsample in zip(stages, following, strict=True)
    ]
    assert tuple(levels) == LEVELS[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *LOGITS.items(),
        *(pytest.param(*item, marks=pytest.mark.heavy, id=item[0]) for item in MORE_LOGITS.items()),
    ],
)
def test_logits_by_rule(name, expected):
    model = fill(timm.create_model(name)).eval()
    with torch.inference_mode():
        actual = summary(model(12**0.5 * polynomial((1, 3, 224, 224)).float()))
    expected = torch.tensor(expected)
    torch.testing.assert_close(actual[:5], expected[:5], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(actual[5:], expected[5:], rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(
    ("kernel", "dilation", "biased", "size", "expected"),
    [
        (3, 1, True, (5, 6), (0.08047532, 0.02713936, 0.94739020, -0.04799720, 0.63502110,
                              12.605792, 9.842746)),
        (3, 2, True, (7, 8), (0.20362971, 0.37751908, 0.61971060, -0.32116229, 0.76162321,
                              18.564948, 13.713253)),
        (7, 1, True, (5, 6), (0.12310604, 0.38296079, 0.86868017, -0.72172549, 0.44030200,
                              10.561202, 7.804540)),
        (3, 1, False, (5, 6), (0.12355415, 0.02178949, 1.02975377, -0.15020799, 0.57711639,
                               13.147603, 9.977266)),
        (3, 2, False, (7, 8), (0.29774944, 0.33770477, 0.69161013, -0.35396052, 0.73467670,
                               18.670476, 13.634754)),
    ],
)  # fmt: skip
def test_attention_equals_the_official_one(kernel, dilation, biased, size, expected):
    """The third has a map smaller than its window, which is padded."""
    attn = fill(NeighborhoodAttention(8, 2, kernel, dilation, dtype=torch.float64))
    if not biased:
        torch.nn.init.zeros_(attn.rpb)
    out = attn(12**0.5 * polynomial((1, *size, 8)))
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(summary(out), expected, rtol=1e-6, atol=1e-6)


def test_small_maps_may_be_clipped_instead():
    x = torch.randn(1, 5, 6, 8)
    legacy = NeighborhoodAttention(8, 2, 7)
    clipped = NeighborhoodAttention(8, 2, 7, pad_mode="clip")
    clipped.load_state_dict(legacy.state_dict())
    whole = NeighborhoodAttention(8, 2, 3, pad_mode="clip")
    whole.load_state_dict({**legacy.state_dict(), "rpb": legacy.rpb.data[:, 4:9, 4:9]})
    assert (clipped(x) - legacy(x)).abs().max() > 1e-4
    square = x[:, :3, :3]
    torch.testing.assert_close(clipped(square), whole(square))


def to_hugging_face(state_dict):
    """Names and layouts of transformers' DinatForImageClassification."""
    result = {}
    for official, value in state_dict.items():
        key = re.sub(r"^patch_embed\.proj", "embeddings.patch_embeddings.projection", official)
        key = re.sub(r"^patch_embed\.norm", "embeddings.norm", key)
        key = re.sub(r"^levels\.(\d)\.blocks", r"encoder.levels.\1.layers", key)
        key = re.sub(r"^levels", "encoder.levels", key)
        key = key.replace(".norm1.", ".layernorm_before.").replace(".norm2.", ".layernorm_after.")
        key = key.replace(".attn.proj.", ".attention.output.dense.")
        key = key.replace(".attn.", ".attention.self.")
        key = key.replace(".mlp.fc1.", ".intermediate.dense.")
        key = key.replace(".mlp.fc2.", ".output.dense.")
        key = re.sub(r"^norm\.", "layernorm.", key)
        key = re.sub(r"^head\.", "classifier.", key)
        key = key if key.startswith("classifier.") else f"dinat.{key}"
        if ".qkv." in key:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[key.replace("qkv", name)] = part
        elif key.endswith("gamma1"):
            scales = torch.stack([value, state_dict[f"{official[:-1]}2"]])
            result[key.replace("gamma1", "layer_scale_parameters")] = scales
        elif not key.endswith("gamma2"):
            result[key] = value
    return result


@pytest.mark.parametrize("scaled", [False, True])
def test_files_of_transformers_load(scaled, golden):
    official = dict(golden("dinat_tiny").state_dict)
    if scaled:
        for key in [key for key in official if key.endswith("norm1.weight")]:
            for i in (1, 2):
                official[key.replace("norm1.weight", f"gamma{i}")] = torch.randn_like(official[key])
    model = timm.create_model("dinat_tiny", init_values=1e-5 if scaled else None)
    model.load_state_dict(to_hugging_face(official), strict=True)
    expected = checkpoint_filter_fn(official, model)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)


def test_files_of_dense_prediction_load(golden):
    record = golden("nat_mini")
    wrapped = {f"backbone.{k}": v for k, v in record.state_dict.items() if "head" not in k}
    wrapped |= {f"backbone.norm{i}.weight": torch.ones(64 * 2**i) for i in range(4)}
    model = timm.create_model("nat_mini", num_classes=0)
    converted = checkpoint_filter_fn({"state_dict": wrapped}, model)
    own = model.state_dict().keys()
    assert own <= converted.keys()
    assert converted.keys() - own == {f"norm{i}.weight" for i in range(4)}


def test_bias_tables_take_another_window(golden):
    """Bicubically, as the authors' weights for windows of 11 came about; others are not touched."""
    record = golden("nat_mini")
    model = timm.create_model("nat_mini", kernel_size=11)
    model.load_state_dict(record.state_dict, strict=True)
    table = record.state_dict["levels.0.blocks.0.attn.rpb"]
    wanted = torch.nn.functional.interpolate(table[None], (21, 21), mode="bicubic")[0]
    torch.testing.assert_close(model.stages[0].blocks[0].attn.rpb.data, wanted)


def test_features_only_loads_the_authors_file(golden, tmp_path):
    record = golden("dinat_s_tiny")
    torch.save(record.state_dict, tmp_path / "dinat_s_tiny.pth")
    features = timm.create_model("dinat_s_tiny", features_only=True, out_indices=(0, 2))
    assert load_checkpoint(features, tmp_path / "dinat_s_tiny.pth").is_whole
    weight = record.state_dict["layers.2.blocks.5.attn.qkv.weight"]
    torch.testing.assert_close(features.model.stages[2].blocks[5].attn.qkv.weight.data, weight)


def test_another_variant_is_refused(golden, tmp_path):
    torch.save(golden("nat_mini").state_dict, tmp_path / "mini.pth")
    with pytest.raises(CheckpointError, match=r"mini\.pth does not fit"):
        load_checkpoint(timm.create_model("nat_tiny"), tmp_path / "mini.pth")


def test_bias_tables_have_no_weight_decay():
    model = timm.create_model("nat_mini", device="meta")
    assert len(model.no_weight_decay()) == sum((3, 4, 6, 5))
    assert all(name.endswith("attn.rpb") for name in model.no_weight_decay())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"pad_mode": "wrap"}, "pad_mode must be"),
        ({"dilations": ((1,),)}, "one tuple for each of 4 stages"),
        ({"layout": "mesh"}, "layout must be"),
        ({"embed_dim": 40}, "embed_dim 40 must be divisible by head_dim 32"),
    ],
)
def test_impossible_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("nat_mini", device="meta", **bad)
