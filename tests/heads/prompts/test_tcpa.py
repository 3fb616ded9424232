"""Token Coordinated Prompt Attention is what its definition and the authors' code say."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from _definition import block_output, mask_of, masked_attention, selected

from visattn.heads.prompts import (
    apply,
    load_trainable,
    pool_loss,
    set_epoch,
    trainable_state_dict,
)
from visattn.heads.prompts.attention import MASK_MODES
from visattn.heads.prompts.layers import PromptPool, fourier, random_entries

POOLS = {"pool_size": 6, "topk": 2, "length": 2}
HTA = {
    "dtd": (47, {}, 699_695),
    "cub": (200, {"iprompt": True}, 823_899),
    "nabirds": (555, {}, 1_090_347),
    "dogs": (120, {"pool_size": 16}, 682_104),
    "flowers": (102, {}, 741_990),
    "food101": (101, {}, 741_221),
    "cifar100": (100, {}, 740_452),
    "cifar10": (10, {}, 671_242),
    "gtsrb": (43, {}, 696_619),
    "svhn": (10, {}, 671_242),
}


def count(model) -> int:
    return sum(p.numel() for p in trainable_state_dict(model).values())


def vit_base(num_classes):
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=num_classes)


@pytest.mark.parametrize(("classes", "kwargs", "expected"), HTA.values(), ids=HTA)
def test_trained_weights_are_as_many_as_the_authors(classes, kwargs, expected):
    assert count(apply(vit_base(classes), "tcpa", host="vfpt", **kwargs)) == expected


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        ("tcpa", {"advp": True}, 663_552 + 55_296),
        ("tcpa", {"pool_size": 16}, 589_824),
        ("tcpa", {"pool_size": (2, 3), "length": (4, 5), "topk": 1}, 12 * 768 * (2 * 5 + 3 * 6)),
        ("vfpt", {}, 12 * 10 * 768),
        ("vpt_deep", {"length": 50}, 12 * 50 * 768),
        ("vpt_shallow", {"length": 50}, 50 * 768),
        ("vp", {"padding": 10}, 3 * (2 * 10 * 224 + 2 * 10 * 204)),
        ("iprompt", {}, 6_547),
        ("linear", {}, 0),
        ("lora", {"rank": 4}, 12 * 2 * 2 * 4 * 768),
        ("adaptformer", {}, 12 * (2 * 64 * 768 + 64 + 768)),
        ("bias", {}, 12 * (768 * 6 + 5 * 768) + 2 * 768),
    ],
)
def test_what_is_added_to_a_base_model_is_counted_to_the_unit(name, kwargs, expected):
    assert count(apply(vit_base(10), name, **kwargs)) == expected + 769 * 10


def test_small_model_has_as_many_weights_as_computed(small_vit):
    pools = trainable_state_dict(apply(small_vit(num_classes=0), "tcpa", **POOLS))
    assert sum(p.numel() for p in pools.values()) == 5_184
    assert pools["blocks.2.prompts.image.prompts"].shape == (6, 2, 48)


@pytest.fixture
def tokens():
    return torch.randn(2, 17, 48)


def definition(model, x, layer, mode="post_softmax", host="vpt_deep"):
    """What a block of a model with pools should give, and its attention."""
    block, pools = model.blocks[layer], model.blocks[layer].prompts
    chosen = [
        selected(tokens, pool.keys, pool.topk, pool.prompts.shape[1])
        if pool.topk
        else torch.ones(*tokens.shape[:2], pool.num_prompts)
        for tokens, pool in ((x[:, :1], pools.cls), (x[:, 1:], pools.image))
    ]
    mask = mask_of(*chosen, block.attn.num_heads)
    prompts = torch.cat((pools.cls.prompts.flatten(0, 1), pools.image.prompts.flatten(0, 1)))
    if host == "vfpt":
        prompts = torch.fft.fft(torch.fft.fft(prompts, dim=-1), dim=-2).real
    out = block_output(block, x, prompts, mask, mode)
    return out, masked_attention(block, x, prompts, mask, mode)[0], mask


@pytest.mark.parametrize("host", ["vpt_deep", "vfpt"])
@pytest.mark.parametrize("token_level", [True, False])
@pytest.mark.parametrize("mode", MASK_MODES)
def test_block_is_its_definition_with_all_gradients(mode, token_level, host, small_vit, tokens):
    model = apply(
        small_vit(init_values=0.5),
        "tcpa",
        **POOLS,
        mask_mode=mode,
        token_level=token_level,
        host=host,
    )
    block = model.blocks[1]
    with torch.no_grad():  # So that attention is far from even.
        block.attn.qkv.weight.mul_(4)
    learnt = [block.prompts.cls.prompts, block.prompts.image.prompts]
    tokens.requires_grad_()
    weights = torch.randn_like(tokens)
    results = []
    for out in (block(tokens), definition(model, tokens, 1, mode, host)[0]):
        results.append((out, *torch.autograd.grad((out * weights).sum(), [tokens, *learnt])))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MASK_MODES)
def test_whole_model_is_its_definition(mode, small_vit, images):
    model = apply(small_vit(), "tcpa", **POOLS, mask_mode=mode)
    x = model._pos_embed(model.patch_embed(images))
    for layer in range(3):
        x = definition(model, x, layer, mode)[0]
    expected = model.forward_head(model.norm(x))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_mask_has_the_ones_of_the_paper(small_vit, tokens):
    settings = {"pool_size": 18, "topk": 10, "length": 1}
    with torch.device("meta"):
        base = timm.create_model("vit_base_patch16_224", num_classes=47)
    pools = apply(base.to_empty(device="cpu"), "tcpa", **settings).blocks[0].prompts
    for pool in (pools.cls, pools.image):
        torch.nn.init.uniform_(pool.keys, -1, 1)
    x = torch.randn(2, 197, 768)
    _, (cls, image) = pools(x)
    mask = mask_of(cls.selected.float(), image.selected.float(), 12)
    assert mask.shape == (2, 12, 197, 233)
    assert (mask.sum(-1) == 207).all()
    assert (mask[:, :, 0, 1:19].sum(-1) == 10).all() and (mask[:, :, 0, 19:37] == 0).all()
    assert (mask[:, :, 1:, 1:19] == 0).all() and (mask[:, :, 1:, 19:37].sum(-1) == 10).all()
    assert (mask == mask[:, :1]).all()
    assert (mask[:, 0, 1] != mask[:, 0, 2]).any()


def test_mask_of_the_small_model_is_as_computed(small_vit, tokens):
    mask = definition(apply(small_vit(), "tcpa", **POOLS), tokens, 0)[2]
    _, roles = apply(small_vit(), "tcpa", **POOLS).blocks[0].prompts(tokens)
    assert mask.shape == (2, 3, 17, 41)
    assert (mask[:, :, 0].sum(-1) == 21).all()
    assert [tuple(role.selected.shape) for role in roles] == [(2, 1, 12), (2, 16, 12)]
    assert all((role.selected.sum(-1) == 4).all() for role in roles)


@pytest.mark.parametrize("mode", MASK_MODES)
def test_choosing_all_entries_is_seeing_all_of_the_role(mode, small_vit, images):
    model = small_vit()
    settings = {"pool_size": 6, "length": 2, "mask_mode": mode}
    all_chosen = apply(model, "tcpa", topk=6, **settings)
    state = trainable_state_dict(all_chosen)
    expected = all_chosen(images)
    role_level = apply(small_vit(), "tcpa", token_level=False, **settings)
    role_level.load_state_dict(all_chosen.state_dict(), strict=False)
    assert not any(name.endswith("keys") for name in trainable_state_dict(role_level))
    assert len(state) - len(trainable_state_dict(role_level)) == 6
    torch.testing.assert_close(role_level(images), expected, rtol=1e-5, atol=1e-5)
    assert pool_loss(role_level) is None


def test_only_the_pool_loss_trains_keys(small_vit, images):
    model = apply(small_vit(), "tcpa", **POOLS)
    keys = [p for name, p in model.named_parameters() if name.endswith("keys")]
    prompts = [[p for p in b.prompts.parameters() if p.ndim == 3] for b in model.blocks]
    logits = model(images)
    distance = pool_loss(model)
    from_logits = torch.autograd.grad(logits.sum(), keys, allow_unused=True, retain_graph=True)
    assert from_logits == (None,) * 6
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(distance, keys, retain_graph=True))
    for layer, pair in enumerate(prompts):
        gradients = torch.autograd.grad(distance, pair, allow_unused=True, retain_graph=True)
        if layer < 2:
            assert all(g.abs().sum() > 0 for g in gradients)
        else:
            assert gradients == (None, None)


def test_pool_loss_is_the_sum_of_mean_distances(small_vit, tokens):
    pools = apply(small_vit(), "tcpa", **POOLS).blocks[0].prompts
    pools.collects = True
    pools(tokens)
    expected = 0
    for x, pool in ((tokens[:, :1], pools.cls), (tokens[:, 1:], pools.image)):
        cosine = F.cosine_similarity(x[:, :, None], pool.keys, -1)
        expected += (1 - cosine.topk(2).values).mean()
    torch.testing.assert_close(pools.distance, expected)
    assert 0 <= pools.distance <= 4


def test_keys_that_are_the_tokens_are_at_no_distance():
    pool = PromptPool(8, size=4, length=1, topk=1)
    with torch.no_grad():
        pool.keys.copy_(torch.randn(4, 8))
    distance = pool.match(3 * pool.keys[None])[1]
    torch.testing.assert_close(distance, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_pool_loss_of_random_features_is_near_two_a_block():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5).eval()
    with torch.no_grad():
        apply(model, "tcpa", host="vfpt")(torch.randn(2, 3, 64, 64))
        assert 22 < pool_loss(model).item() < 25
    assert pool_loss(model) is None


@pytest.mark.parametrize(
    ("kwargs", "layers"),
    [({"length": 0}, 3), ({"length": 0, "token_level": False}, 3)],
)
@pytest.mark.parametrize("mode", MASK_MODES)
def test_without_prompts_it_is_the_plain_model(kwargs, layers, mode, small_vit, images):
    model = small_vit()
    expected = model(images)
    apply(model, "tcpa", mask_mode=mode, **kwargs)
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)


def test_rows_lose_the_mass_of_hidden_prompts(small_vit, tokens):
    model = apply(small_vit(), "tcpa", **POOLS)
    _, weights, mask = definition(model, tokens, 0)
    with torch.no_grad():  # With values of one everywhere, the output is the sum of a row.
        block = model.blocks[0]
        block.attn.qkv.weight[96:] = 0
        block.attn.qkv.bias[96:] = 1
        block.attn.proj.weight.copy_(torch.eye(48))
        block.attn.proj.bias.zero_()
    sums = block._attend(tokens)
    torch.testing.assert_close(sums[..., ::16].transpose(1, 2), weights.sum(-1))
    assert sums.max() < 1


@pytest.mark.parametrize("mode", MASK_MODES)
def test_image_prompts_reach_the_class_only_through_the_denominator(mode, small_vit, tokens):
    model = apply(small_vit(), "tcpa", **POOLS, token_level=False, mask_mode=mode)
    block = model.blocks[0]
    before = block(tokens)
    with torch.no_grad():
        block.prompts.image.prompts.normal_()
    after = block(tokens)
    assert torch.equal(after[:, 0], before[:, 0]) == (mode != "post_softmax")
    assert not torch.equal(after[:, 1:], before[:, 1:])


def test_before_the_softmax_a_block_is_two_runs_of_the_equations(small_vit, tokens):
    model = apply(small_vit(), "tcpa", **POOLS, token_level=False, mask_mode="pre_softmax")
    block, plain = model.blocks[0], small_vit().blocks[0]
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "prompts" not in k})
    runs = [
        plain(torch.cat((tokens, pool.prompts.flatten(0, 1).expand(2, -1, -1)), 1))
        for pool in (block.prompts.cls, block.prompts.image)
    ]
    expected = torch.cat((runs[0][:, :1], runs[1][:, 1:17]), 1)
    torch.testing.assert_close(block(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MASK_MODES)
def test_image_prompts_of_the_last_block_change_logits_through_the_denominator(
    mode, small_vit, images
):
    model = apply(small_vit(), "tcpa", **POOLS, mask_mode=mode)
    last = model.blocks[-1].prompts.image.prompts
    (gradient,) = torch.autograd.grad(model(images).sum(), last)
    assert (gradient.abs().sum() > 0) == (mode == "post_softmax")
    block = model.blocks[-1]
    with torch.no_grad():  # Prompts of no value still have keys.
        block.prompts.image.prompts.normal_()
        block.attn.qkv.weight[96:].zero_()
        block.attn.qkv.bias[96:].zero_()
    outputs = []
    for _ in range(2):
        outputs.append(model(images))
        with torch.no_grad():
            last.normal_()
    torch.testing.assert_close(*outputs)


def test_fourier_transform_is_as_defined():
    assert torch.equal(fourier(torch.zeros(4, 6)), torch.zeros(4, 6))
    constant = fourier(torch.full((4, 6), 0.5))
    expected = torch.zeros(4, 6)
    expected[0, 0] = 4 * 6 * 0.5
    torch.testing.assert_close(constant, expected)
    a, b = torch.randn(2, 4, 6)
    torch.testing.assert_close(fourier(2 * a - b), 2 * fourier(a) - fourier(b))
    by_sum = torch.stack(
        [
            torch.stack(
                [
                    sum(
                        a[p, d] * math.cos(2 * math.pi * (p * u / 4 + d * w / 6))
                        for p in range(4)
                        for d in range(6)
                    )
                    for w in range(6)
                ]
            )
            for u in range(4)
        ]
    )
    torch.testing.assert_close(fourier(a), by_sum, rtol=1e-4, atol=1e-4)
    half = fourier(a, share=0.5)
    assert torch.equal(half[2:], a[2:])
    torch.testing.assert_close(half[:2], fourier(a[:2]))


@pytest.mark.parametrize("host", ["vpt_deep", "vfpt"])
def test_order_of_entries_matters_to_the_fourier_transform_alone(host, small_vit, images):
    model = apply(small_vit(), "tcpa", **POOLS, host=host)
    before = model(images)
    with torch.no_grad():
        for block in model.blocks:
            for pool in (block.prompts.cls, block.prompts.image):
                order = torch.tensor([3, 0, 5, 1, 2, 4])
                for parameter in pool.parameters():
                    parameter.copy_(parameter[order].clone())
    difference = (model(images) - before).abs().max()
    assert (difference < 1e-5) == (host == "vpt_deep")


def test_random_entries_are_distinct_and_differ_between_tokens():
    entries = random_entries((2, 50, 6), 4, generator=torch.Generator().manual_seed(0))
    assert entries.shape == (2, 50, 4)
    assert all(len(set(row.tolist())) == 4 for row in entries.flatten(0, 1))
    assert (entries[:, 1:] != entries[:, :-1]).any()
    again = random_entries((2, 50, 6), 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(entries, again)


def test_choices_are_random_in_the_first_epochs_of_training_alone(small_vit, tokens):
    model = apply(small_vit(), "tcpa", **POOLS, random_epoch=2)
    pools = model.blocks[0].prompts

    def choices(epoch, training):
        model.train(training)
        if epoch is not None:
            set_epoch(model, epoch)
        return [pools(tokens)[1][1].selected for _ in range(2)]

    by_keys = choices(None, True)
    assert torch.equal(*by_keys)
    for epoch, training, is_random in ((1, True, True), (1, False, False), (2, True, False)):
        first, second = choices(epoch, training)
        assert (first.sum(-1) == 4).all()
        assert torch.equal(first, second) != is_random
        assert torch.equal(first, by_keys[0]) != is_random


def test_dropout_differs_between_samples(small_vit, tokens):
    pools = apply(small_vit(), "tcpa", **POOLS, dropout=0.5).train().blocks[0].prompts
    rows = pools(tokens)[0]
    assert rows.shape == (2, 24, 48)
    assert (rows[0] != rows[1]).any()
    assert 0.4 < (rows == 0).float().mean() < 0.6


@pytest.mark.parametrize("mode", MASK_MODES)
@pytest.mark.parametrize("registers", ["cls", "exclude"])
def test_registers_are_of_the_class_or_see_no_prompts(registers, mode, small_vit):
    model = small_vit("vit_small_patch14_reg4_dinov2", embed_dim=48)
    apply(model, "tcpa", **POOLS, registers=registers, mask_mode=mode)
    block, x = model.blocks[0], torch.randn(2, 1 + 4 + 16, 48)
    _, roles = block.prompts(x)
    rows = [role.rows.indices(21)[:2] for role in roles]
    before = block(x)
    with torch.no_grad():  # The value of prompts moves, but not their keys.
        block.prompts.affine = torch.nn.Identity()
        block.prompts.affine.forward = lambda values: values + 1
    changed = (block(x) - before).abs().amax((0, 2)) > 1e-6
    if registers == "cls":
        assert rows == [(0, 5), (5, 21)]
        assert changed.all()
    else:
        assert rows == [(0, 1), (1, 5), (5, 21)]
        assert changed[0] and not changed[1:5].any() and changed[5:].all()


def test_without_class_tokens_there_is_the_image_pool_alone(small_vit, images):
    model = small_vit(class_token=False, global_pool="avg")
    pools = apply(model, "tcpa", **POOLS, advp=True).blocks[0].prompts
    assert pools.cls is None
    assert pools.affine.weight.shape == (1, 12, 48)
    assert model(images).shape == (2, 5)


def test_both_tokens_of_a_distilled_model_are_of_the_class(small_vit, images):
    model = apply(small_vit("deit_tiny_distilled_patch16_224"), "tcpa", **POOLS)
    assert model.blocks[0].prompts.num_class == 2
    assert {"head.weight", "head_dist.weight"} <= trainable_state_dict(model).keys()
    model(images)


def test_weights_in_the_layout_of_the_authors_load(small_vit, images):
    model = apply(small_vit(), "tcpa", **POOLS, advp=True, iprompt=True)
    official = {f"backbone.{k}": v for k, v in model.state_dict().items() if "prompt" not in k}
    for role in ("cls", "image"):
        official[f"Pool.Pool_{role}.keys"] = torch.randn(3, 6, 48)
        official[f"Pool.Pool_{role}.prompts"] = torch.randn(3, 6, 2, 48)
    official["ADVP_w"], official["ADVP_b"] = torch.randn(2, 1, 24, 48)
    official["Prompter.Prompter.0.weight"] = torch.randn(9, 3, 11, 11)
    official["Prompter.Prompter.0.bias"] = torch.randn(9)
    official["Prompter.Prompter.1.weight"] = torch.randn(1)
    official["Prompter.Prompter.2.weight"] = torch.randn(3, 9, 11, 11)
    official["Prompter.Prompter.2.bias"] = torch.randn(3)
    load_trainable(model, official)
    ours = model.state_dict()
    layer = "blocks.2.prompts"
    assert torch.equal(ours[f"{layer}.image.keys"], official["Pool.Pool_image.keys"][2])
    assert torch.equal(ours[f"{layer}.cls.prompts"], official["Pool.Pool_cls.prompts"][2])
    assert torch.equal(ours[f"{layer}.affine.weight"], official["ADVP_w"])
    assert torch.equal(
        ours["prompter.conv.layers.act.weight"], official["Prompter.Prompter.1.weight"]
    )


def test_frozen_weights_get_no_optimiser_state(small_vit, images):
    model = apply(small_vit(), "tcpa", **POOLS)
    backbone = {k: v.clone() for k, v in model.state_dict().items() if "prompts" not in k}
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    (model(images).sum() + pool_loss(model)).backward()
    optimizer.step()
    assert len(optimizer.state) == len(trainable_state_dict(model))
    for name, value in backbone.items():
        assert torch.equal(model.state_dict()[name], value) == (not name.startswith("head."))
