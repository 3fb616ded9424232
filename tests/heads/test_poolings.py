"""Poolings against their unfolded definitions, the authors' outputs, and what must hold of each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from visattn.heads.poolings import POOLINGS, create_pooling, list_poolings, split_name

GOLDENS = Path(__file__).parents[1] / "goldens"
RECORDS = json.loads((GOLDENS / "poolings.json").read_text())["poolings"]
OPTIONS = {"ep_m32": ("ep", {"num_queries": 32})}


def with_bias(prefix, *layers):
    return [f"{prefix}{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


PARAMETERS = {
    "ep": 614_400,
    "abmilp": 2_951_425,
    "simpool": 1_181_184,
    "esimpool": 1_536,
    "clip": 2_515_200,
    "siglip": 7_085_568,
    "aim": 1_180_416,
    "cbam": 73_828,
    "coca": 1_036_032,
    "cait": 7_091_712,
    "dinovit": 7_085_568,
    "jepa": 7_088_640,
    "dolg": 592_897,
    "cae": 2_366_976,
    "lse": 1,
    "gem": 1,
    "gap": 0,
    "cls": 0,
}
KEYS = {
    "ep": ["cls_token", "v.weight"],
    "abmilp": [
        "self_attn.qkv.weight",
        *with_bias("", "self_attn.proj", "attention_predictor.0", "attention_predictor.2"),
    ],
    "simpool": [*with_bias("", "norm_patches"), "wq.weight", "wk.weight"],
    "esimpool": with_bias("", "norm_patches"),
    "clip": ["pos_embed", *with_bias("", "qkv", "proj", "norm")],
    "coca": [
        *("img_queries", "norm.gamma", "norm.beta"),
        *("to_q.weight", "to_kv.weight", "to_out.weight"),
    ],
    "cait": [
        "cls_token",
        *("blocks_token_only.0.gamma_1", "blocks_token_only.0.gamma_2"),
        *with_bias("", "norm"),
        *with_bias("blocks_token_only.0.", "norm1", "norm2", "mlp.fc1", "mlp.fc2"),
        *with_bias("blocks_token_only.0.attn.", "q", "k", "v", "proj"),
    ],
    "jepa": [
        "query_tokens",
        *with_bias("cross_attention_block.", "norm1", "norm2", "mlp.fc1", "mlp.fc2"),
        *with_bias("cross_attention_block.xattn.", "q", "kv", "proj"),
    ],
    "dinovit": [
        "dino_block.attn.qkv.weight",
        *with_bias("dino_block.", "norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
    ],
}
# Options that fit 24 channels and 16 tokens, and all that change what is computed.
SMALL = {
    "ep": {"num_queries": 4},
    "ep, narrow, biased": {"num_queries": 3, "d_out": 2, "qkv_bias": True, "qk_scale": 0.5},
    "abmilp": {},
    "abmilp, scores": {"sa": "map", "activation": "relu", "depth": 3},
    "abmilp, alone": {"sa": "none", "depth": 1},
    "abmilp, positions": {"cond": "pe", "num_patches": 16},
    "abmilp, patches": {"cond": "pe", "num_patches": 16, "content": "patch", "depth": 1},
    "simpool": {},
    "simpool, heads": {"num_heads": 3, "qkv_bias": True},
    "esimpool": {"num_heads": 4},
    "clip": {"feat_size": 4},
    "siglip": {},
    "siglip, latents": {"latent_len": 3, "pool_type": "avg", "norm_layer": nn.LayerNorm},
    "aim": {"num_heads": 8},
    "aim, queries": {"num_heads": 2, "num_queries": 3, "qkv_bias": True},
    "coca": {"dim_head": 8},
    "coca, normed": {"dim_head": 8, "norm_context": True},
    "cait": {},
    "cait, deep": {"iterations": 2, "init_scale": 0.5},
    "jepa": {"num_heads": 8},
    "dinovit": {},
    "dolg": {},
    "cae": {},
    "cae, biased": {"qkv_bias": True},
    "cbam": {"rd_ratio": 0.5},
}


def build(case, dim=24):
    """A pooling in double precision whose parameters are all of some size."""
    pooling = create_pooling(case.partition(",")[0], dim, **SMALL[case])
    for name, parameter in pooling.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return pooling.double()


def tokens(*shape):
    return torch.randn(*(shape or (3, 16, 24)), dtype=torch.float64)


def tokens_for(case, batch):
    """With a class token first where positions have a place for it, or it is left out."""
    return tokens(batch, 17 if SMALL[case].get("cond") == "pe" else 16, 24)


def attend(q, k, v, heads):
    """Attention of queries (B, L, C) to keys and values (B, N, C), and its weights."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def expand(query, x):
    return query.expand(len(x), -1, -1)


def define_ep(m, x):
    scores = (m.cls_token[0] @ x.mT * m.scale).softmax(-1)  # (B, M, N)
    values = m.v(x).unflatten(-1, (m.num_queries, -1))  # (B, N, M, c)
    return torch.einsum("bmn,bnmc->bmc", scores, values).flatten(1)


def define_abmilp(m, x):
    x = x[:, 1:] if m.content == "patch" else x
    mixed = x
    if m.sa != "none":
        mixed = m.self_attn.proj(attend(*m.self_attn.qkv(x).chunk(3, -1), 1))
    seen = mixed if m.pos_embed is None else mixed + m.pos_embed
    weights = m.attention_predictor(seen).softmax(1)
    return ((mixed if m.sa == "both" else x) * weights).sum(1)


def define_simpool(m, x):
    normed = m.norm_patches(x)
    return attend(m.wq(x.mean(1, keepdim=True)), m.wk(normed), normed, m.num_heads)[:, 0]


def define_esimpool(m, x):
    query = m.norm_patches(x.mean(1, keepdim=True))
    return attend(query, m.norm_patches(x), x, m.num_heads)[:, 0]


def define_clip(m, x):
    x = m.norm(x)
    x = torch.cat((x.mean(1, keepdim=True), x), 1) + m.pos_embed
    return m.proj(attend(*m.qkv(x).chunk(3, -1), m.num_heads))[:, 0]


def define_siglip(m, x):
    x = m.proj(attend(m.q(expand(m.latent, x)), *m.kv(x).chunk(2, -1), m.num_heads))
    x = x + m.mlp(m.norm(x))
    return x.mean(1) if m.pool == "avg" else x[:, 0]


def define_aim(m, x):
    x = m.bn(x.mT).mT
    return attend(expand(m.cls_token, x), m.k(x), m.v(x), m.num_heads).mean(1)


def define_coca(m, x):
    query = m.to_q(m.norm(m.img_queries)).unflatten(-1, (m.heads, -1))
    key, value = m.to_kv(m.context_norm(x)).chunk(2, -1)
    weights = torch.einsum("lhd,bnd->bhln", query * m.scale, key).softmax(-1)
    out = torch.einsum("bhln,bnd->blhd", weights, value).flatten(2)
    return m.to_out(out)[:, 0]


def define_cait(m, x):
    token = expand(m.cls_token, x)
    for block in m.blocks_token_only:
        token = block(x, token)
    return m.norm(torch.cat((token, x), 1))[:, 0]


def define_jepa(m, x):
    block = m.cross_attention_block
    query, attn = expand(m.query_tokens, x), block["xattn"]
    key, value = attn.kv(block["norm1"](x)).chunk(2, -1)
    query = query + attn.proj(attend(attn.q(query), key, value, m.num_heads))
    return (query + block["mlp"](block["norm2"](query)))[:, 0]


def define_dinovit(m, x):
    return m.dino_block(x).mean(1)


def define_dolg(m, x):
    x = m.bn(m.conv1(x.mT.unflatten(2, (4, 4))))
    weights = F.softplus(m.conv2(x.relu()))
    return (weights * F.normalize(x, dim=1)).mean((2, 3))


def define_cae(m, x):
    attn = m.cross_attn
    query = F.linear(m.norm1_q(expand(m.query_token, x)), attn.q.weight, attn.q_bias)
    value = F.linear(m.norm1_v(x), attn.v.weight, attn.v_bias)
    return attn.proj(attend(query, attn.k(m.norm1_k(x)), value, m.num_heads))[:, 0]


def define_cbam(m, x):
    x = x.mT.unflatten(2, (4, 4))

    def squeeze(pooled):
        return m.channel.fc2(m.channel.fc1(pooled).relu())

    means, peaks = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    gated = x * (squeeze(means) + squeeze(peaks)).sigmoid()
    planes = torch.stack((gated.mean(1), gated.amax(1)), 1)
    conv = m.spatial.conv
    return (x + gated * conv.bn(conv.conv(planes)).sigmoid()).relu().mean((2, 3))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", SMALL)
def test_equals_its_unfolded_definition(case, training):
    """Outputs and all gradients, those of the tokens too."""
    pooling = build(case).train(training)
    x = tokens_for(case, 3) + tokens(24)
    upstream = tokens(3, pooling.out_features)

    def run(function):
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        pooling.zero_grad()
        out.backward(upstream)
        named = pooling.named_parameters()
        return {"out": out, "x": leaf.grad} | {name: p.grad for name, p in named}

    buffers = {name: value.clone() for name, value in pooling.named_buffers()}
    wanted = run(lambda leaf: globals()[f"define_{case.partition(',')[0]}"](pooling, leaf))
    moved = {name: value.clone() for name, value in pooling.named_buffers()}
    pooling.load_state_dict(buffers, strict=False)
    found = run(pooling)
    for name, value in found.items():
        if wanted[name] is None:  # has no effect
            assert value is None or not value.any(), name
        else:
            assert torch.allclose(value, wanted[name], rtol=1e-6, atol=1e-9), name
    for name, value in pooling.named_buffers():
        torch.testing.assert_close(value, moved[name])


@pytest.mark.parametrize("name", RECORDS)
def test_equals_the_authors(name, rule_made):
    record = RECORDS[name]
    key, options = OPTIONS.get(name, (name, {}))
    pooling = create_pooling(key, 768, **options).eval()
    assert {k: list(v.shape) for k, v in pooling.state_dict().items()} == record["keys"]
    weights = {
        k: torch.tensor(0) if k.endswith("tracked") else rule_made(k, tuple(shape))
        for k, shape in record["keys"].items()
    }
    pooling.load_state_dict(weights)
    x = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 196, 768))).float()
    wanted = torch.from_numpy(np.load(GOLDENS / "poolings.npz")[name])
    assert (pooling(x) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("name", list_poolings())
def test_parameters_to_the_unit(name):
    with torch.device("meta"):
        pooling = POOLINGS[name](768)
    assert sum(p.numel() for p in pooling.parameters()) == PARAMETERS[name]
    if name in KEYS:
        assert set(pooling.state_dict()) == set(KEYS[name])


@pytest.mark.parametrize(
    ("dim", "queries", "d_out", "total"),
    [
        (384, 12, 1, 537_064),
        (768, 1, 1, 1_359_592),
        (768, 64, 1, 1_407_976),
        (1024, 32, 1, 2_106_344),
        (1280, 128, 1, 3_083_240),
        (4096, 128, 1, 21_398_504),
        (768, 32, 2, 704_488),
        (768, 48, 8, 207_592),
        (768, 12, 16, 95_080),
    ],
)
def test_parameters_of_ep_with_its_classifier(dim, queries, d_out, total):
    with torch.device("meta"):
        pooling = create_pooling("ep", dim, num_queries=queries, d_out=d_out)
    classifier = 1000 * (pooling.out_features + 1)
    assert sum(p.numel() for p in pooling.parameters()) + classifier == total


@pytest.mark.parametrize("name", list_poolings())
def test_trains_every_parameter_and_takes_one_image(name):
    options = {"clip": {"feat_size": 4}}.get(name, {})
    pooling = create_pooling(name, 96, **options)
    pooling(torch.randn(3, 16, 96, requires_grad=True)).square().sum().backward()
    assert all(p.grad is not None for p in pooling.parameters())
    assert pooling.eval()(torch.randn(1, 16, 96)).shape == (1, pooling.out_features)


@pytest.mark.parametrize("name", [n for n in list_poolings() if n not in ("clip", "cbam", "cls")])
def test_ignores_the_order_of_tokens(name):
    pooling = create_pooling(name, 96).double().eval()
    x = tokens(2, 16, 96)
    torch.testing.assert_close(pooling(x[:, torch.randperm(16)]), pooling(x))


@pytest.mark.parametrize("case", ["clip", "cbam"])
def test_sees_the_order_of_tokens(case):
    pooling, x = build(case).eval(), tokens(2, 16, 24)
    assert not torch.allclose(pooling(x.flip(1)), pooling(x), rtol=1e-3)


@pytest.mark.parametrize("case", [c for c in SMALL if not c.startswith(("cbam", "dinovit"))])
def test_attention_to_look_at(case):
    """Weights of the tokens, that sum to one but for what a token of the pooling's own gets."""
    pooling = build(case).eval()
    x = tokens_for(case, 2)
    weights = pooling.attention(x)
    assert weights.shape[0] == 2
    assert weights.shape[2] == (16 if case == "abmilp, patches" else x.shape[1])
    sums = weights.sum(-1)
    if case.startswith(("clip", "cait")):
        assert (sums < 1).all() and (weights > 0).all()
    else:
        torch.testing.assert_close(sums, torch.ones_like(sums))


class TestEfficientProbing:
    def test_zero_queries_average(self):
        pooling, x = build("ep"), tokens()
        nn.init.zeros_(pooling.cls_token)
        torch.testing.assert_close(pooling(x), pooling.v(x.mean(1)))

    def test_groups_follow_their_queries(self):
        pooling, x, order = build("ep"), tokens(), [2, 0, 3, 1]
        groups = pooling(x).unflatten(1, (4, 6))
        pooling.cls_token.data = pooling.cls_token[:, order]
        pooling.v.weight.data = pooling.v.weight.unflatten(0, (4, 6))[order].flatten(0, 1)
        torch.testing.assert_close(pooling(x).unflatten(1, (4, 6)), groups[:, order])

    def test_is_attention_whose_key_projection_is_absorbed(self):
        pooling, x = build("ep"), tokens()
        query, key = tokens(24), nn.Linear(24, 24, bias=False).double()
        folded = torch.einsum("hd,hdc->hc", query.view(4, 6), key.weight.view(4, 6, 24))
        pooling.cls_token.data = folded[None] * (24 / 4) ** -0.5 * 24**0.5
        wanted = attend(query.expand(3, 1, -1), key(x), pooling.v(x), 4)[:, 0]
        torch.testing.assert_close(pooling(x), wanted)

    def test_constant_tokens_are_projected(self):
        pooling, x = build("ep"), tokens(3, 1, 24)
        torch.testing.assert_close(pooling(x.expand(-1, 9, -1)), pooling.v(x[:, 0]))

    def test_a_shift_of_all_tokens_is_projected(self):
        pooling, x, shift = build("ep"), tokens(), tokens(24)
        torch.testing.assert_close(pooling(x + shift) - pooling(x), pooling.v(shift).expand(3, -1))

    def test_one_query_has_values_of_full_width(self):
        pooling, x = create_pooling("ep", 24, num_queries=1).double(), tokens()
        weights = (x @ pooling.cls_token[0, 0] * 24**-0.5).softmax(1)
        torch.testing.assert_close(pooling(x), (weights[..., None] * pooling.v(x)).sum(1))

    def test_takes_queries_of_the_caller(self):
        pooling, x, queries = build("ep"), tokens(), tokens(3, 4, 24)
        wanted = []
        for item, own in zip(x, queries, strict=True):
            pooling.cls_token.data = own[None]
            wanted.append(pooling(item[None]))
        torch.testing.assert_close(pooling(x, cls=queries), torch.cat(wanted))


def test_cae_attends_uniformly_at_first():
    pooling = create_pooling("cae", 24)
    weights = pooling.attention(torch.randn(2, 10, 24))
    torch.testing.assert_close(weights, torch.full_like(weights, 0.1))


def test_cait_hardly_sees_its_input_at_first():
    pooling = create_pooling("cait", 24)
    out = pooling(torch.randn(5, 16, 24))
    torch.testing.assert_close(
        out, pooling.norm(pooling.cls_token)[0].expand(5, -1), atol=0.02, rtol=0
    )


def test_simpools_of_constant_tokens():
    x = tokens(2, 1, 24)
    for name, wanted in (
        ("esimpool", x[:, 0]),
        ("simpool", F.layer_norm(x[:, 0], (24,), eps=1e-6)),
    ):
        pooling = create_pooling(name, 24).double()
        torch.testing.assert_close(pooling(x.expand(-1, 9, -1)), wanted)


@pytest.mark.parametrize("name", ["lse", "gem"])
@pytest.mark.parametrize("sharpness", [1e-3, 300.0])
def test_smooth_maxima_run_from_the_mean_to_the_maximum(name, sharpness):
    x = tokens(2, 9, 5).abs() + 0.5
    pooling = create_pooling(name, 5).double()
    nn.init.constant_(next(pooling.parameters()), sharpness)
    if name == "gem" and sharpness < 1:
        wanted = x.log().mean(1).exp()  # the geometric mean
    else:
        wanted = x.mean(1) if sharpness < 1 else x.amax(1)
    torch.testing.assert_close(pooling(x), wanted, rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("ep", ("ep", "patch")),
        ("ep_all", ("ep", "all")),
        ("pos", ("gap", "patch")),
        ("gap_all", ("gap", "all")),
        ("cls", ("cls", "cls")),
    ],
)
def test_names_say_which_tokens(name, meaning):
    assert split_name(name) == meaning
    assert type(create_pooling(name, 96)) is POOLINGS[meaning[0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_pooling("simpol", 24), "did you mean 'simpool'"),
        (lambda: create_pooling("cls_all", 24), "has no '_all'"),
        (lambda: create_pooling("cbam_all", 24), "the class token has no place"),
        (lambda: create_pooling("ep", 24, num_queries=5), "must divide the 24 dim.*5 x 1"),
        (lambda: create_pooling("ep", 24, num_queries=8, d_out=2), "8 x 2"),
        (lambda: create_pooling("aim", 24, num_heads=7), "num_heads must divide"),
        (lambda: create_pooling("abmilp", 24, sa="all"), "sa must be one of"),
        (
            lambda: create_pooling("abmilp", 24, cond="pe", num_patches=15),
            "a square number; got 15",
        ),
        (lambda: create_pooling("abmilp", 24, depth=0), "depth must be at least 1"),
        (lambda: create_pooling("siglip", 24, pool_type="max"), "pool_type must be"),
        (lambda: create_pooling("gem", 24, p=0), "p must be above 0"),
        (lambda: create_pooling("cbam", 24)(torch.randn(1, 15, 24)), "square grid; got 15"),
        (lambda: create_pooling("clip", 24)(torch.randn(1, 15, 24)), "196 tokens; got 15"),
        (lambda: create_pooling("gap", 24)(torch.randn(1, 15, 25)), r"\(B, N, 24\).*25\)"),
        (lambda: create_pooling("gap", 24)(torch.randn(1, 0, 24)), "at least one"),
        (
            lambda: create_pooling("abmilp", 24, cond="pe", num_patches=16)(torch.randn(1, 16, 24)),
            "positions for 17 tokens; got 16",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
