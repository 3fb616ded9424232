"""DCAL against its definition, and against timm's networks."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from _rules import count
from timm.models.vision_transformer import Block

from visattn.backbones.dcal import (
    attention_map,
    attention_rollout,
    fuse_logits,
    global_local_block,
    pairwise_block,
)
from visattn.heads.dcal import DualCrossAttentionLoss, combine_losses
from visattn.zoo.checkpoint import CheckpointError, load_checkpoint

NAMES = (
    "dcal_deit_tiny_patch16",
    "dcal_deit_small_patch16",
    "dcal_deit_base_patch16",
    "dcal_vit_base_patch16",
)
# Parameters for images of 448 pixels, three loss weights included, by classes.
PARAMETERS = {
    (NAMES[0], 200): 6_159_763,
    (NAMES[0], 196): 6_158_219,
    (NAMES[0], 100): 6_121_163,
    (NAMES[1], 200): 23_820_691,
    (NAMES[1], 196): 23_817_611,
    (NAMES[1], 100): 23_743_691,
    (NAMES[2], 200): 93_647_251,
    (NAMES[2], 196): 93_641_099,
    (NAMES[2], 100): 93_493_451,
    (NAMES[3], 200): 93_647_251,
}
# Parameters without classifiers and loss weights, by size, and those of GLCA.
FEATURES = {
    (NAMES[0], (256, 128)): (5_511_360, 445_248),
    (NAMES[0], (256, 256)): (5_535_936, 445_248),
    (NAMES[1], (256, 128)): (21_639_552, 1_775_232),
    (NAMES[1], (256, 256)): (21_688_704, 1_775_232),
    (NAMES[3], (256, 128)): (85_746_432, 7_089_408),
    (NAMES[3], (256, 256)): (85_844_736, 7_089_408),
}


def tiny(**kwargs):
    """Three blocks for images of 64 pixels, 16 patches."""
    kwargs = {"depth": 3, "embed_dim": 48, "img_size": 64, "num_classes": 5, **kwargs}
    return timm.create_model(NAMES[0], **kwargs)


def block(sharp=4.0):
    """A block whose attention is far from uniform."""
    result = Block(48, 3, qkv_bias=True).eval()
    torch.nn.init.normal_(result.attn.qkv.weight, std=sharp * 48**-0.5)
    return result


def images(batch=4, height=64, width=64):
    return torch.randn(batch, 3, height, width)


def maps(count, tokens=5, batch=2):
    return [torch.rand(batch, tokens, tokens).softmax(-1) for _ in range(count)]


@pytest.mark.parametrize(("name", "classes"), PARAMETERS)
def test_parameter_count(name, classes):
    model = timm.create_model(name, num_classes=classes, device="meta")
    assert count(model) == PARAMETERS[name, classes]


@pytest.mark.parametrize(
    ("name", "block", "norm", "head"),
    [
        (NAMES[0], 444_864, 384, 38_600),
        (NAMES[1], 1_774_464, 768, 77_000),
        (NAMES[2], 7_087_872, 1_536, 153_800),
    ],
)
def test_parameter_count_of_the_parts(name, block, norm, head):
    model = timm.create_model(name, num_classes=200, device="meta")
    parts = (model.glca_blocks, model.glca_norm, model.glca_head)
    assert tuple(map(count, parts)) == (block, norm, head)


@pytest.mark.parametrize(("name", "size"), FEATURES)
def test_parameter_count_without_classifiers(name, size):
    backbone, glca = FEATURES[name, size]
    model = timm.create_model(name, num_classes=0, img_size=size, device="meta")
    assert count(model) == backbone + glca + 3
    model = timm.create_model(name, num_classes=0, img_size=size, glca_depth=0, device="meta")
    assert count(model) == backbone + 3


def test_names_of_parameters():
    """Those of timm stay; PWCA has none."""
    model = tiny()
    plain = timm.create_model("deit_tiny_patch16_224", depth=3, embed_dim=48, num_classes=5)
    new = model.state_dict().keys() - plain.state_dict().keys()
    assert plain.state_dict().keys() <= model.state_dict().keys()
    parts = {key.rpartition(".")[0] for key in new}
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    assert parts == {"", "glca_norm", "glca_head", *(f"glca_blocks.0.{layer}" for layer in layers)}
    assert model.loss_weights.shape == (3,) and not model.loss_weights.any()
    assert tiny(pwca_depth=0).state_dict().keys() == model.state_dict().keys()
    shared = tiny(share_head=True).state_dict().keys()
    assert model.state_dict().keys() - shared == {"glca_head.weight", "glca_head.bias"}


def test_glca_of_all_tokens_is_self_attention():
    op, x = block(), torch.randn(2, 17, 48)
    torch.testing.assert_close(global_local_block(op, x, x), op(x))


@pytest.mark.parametrize("index", [[0, 3, 9], [9, 0, 3], [16]])
def test_glca_of_some_tokens_is_their_part_of_self_attention(index):
    op, x = block(), torch.randn(2, 17, 48)
    actual = global_local_block(op, x[:, index], x)
    torch.testing.assert_close(actual, op(x)[:, index], rtol=1e-5, atol=1e-5)


def test_pwca_of_an_image_and_itself_is_self_attention():
    op, x = block(), torch.randn(1, 17, 48).expand(2, -1, -1)
    actual = pairwise_block(op, x, torch.tensor([1, 0]))
    torch.testing.assert_close(actual, op(x), rtol=1e-5, atol=1e-5)


def pairwise_by_definition(op, x, other):
    """One image's PWCA block, and its attention (heads, N, 2N), head by head."""
    y, z = op.norm1(x), op.norm1(other)
    out, attention = [], []
    for weight, bias in zip(
        op.attn.qkv.weight.view(3, 3, 16, 48).unbind(1), op.attn.qkv.bias.view(3, 3, 16).unbind(1),
        strict=True,
    ):  # fmt: skip
        q = y @ weight[0].T + bias[0]
        k = torch.cat((y, z)) @ weight[1].T + bias[1]
        v = torch.cat((y, z)) @ weight[2].T + bias[2]
        attention.append((q @ k.T / 4).softmax(-1))
        out.append(attention[-1] @ v)
    x = x + op.attn.proj(torch.cat(out, -1))
    return x + op.mlp(op.norm2(x)), torch.stack(attention)


def test_pwca_by_definition():
    op, x = block(), torch.randn(3, 9, 48)
    partner = [2, 0, 1]
    actual = pairwise_block(op, x, torch.tensor(partner))
    others = torch.randn(3, 9, 48)
    of_others = pairwise_block(op, x, torch.tensor(partner), others)
    for i, j in enumerate(partner):
        expected, attention = pairwise_by_definition(op, x[i], x[j])
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, 9))
        torch.testing.assert_close(actual[i], expected, rtol=1e-5, atol=1e-5)
        expected, _ = pairwise_by_definition(op, x[i], others[j])
        torch.testing.assert_close(of_others[i], expected, rtol=1e-5, atol=1e-5)


def test_the_halves_of_attention_to_an_image_and_itself_are_equal():
    op, x = block(), torch.randn(9, 48)
    _, attention = pairwise_by_definition(op, x, x)
    torch.testing.assert_close(attention[..., :9], attention[..., 9:])
    alone = attention_map(op, x[None])[0]
    torch.testing.assert_close(2 * attention[..., :9].mean(0), alone, rtol=1e-5, atol=1e-6)


def test_order_of_the_other_images_tokens_does_not_matter():
    op, x, others = block(), torch.randn(2, 17, 48), torch.randn(2, 17, 48)
    partner = torch.tensor([1, 0])
    expected = pairwise_block(op, x, partner, others)
    shuffled = torch.randperm(17)
    actual = pairwise_block(op, x, partner, others[:, shuffled])
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert (pairwise_block(op, x[:, shuffled], partner, others) - expected).abs().max() > 1e-2


def test_an_image_whose_keys_are_far_off_changes_nothing():
    """Keys of the other image are turned against all queries, so that its share of them is null."""
    op, x = block(), torch.randn(2, 17, 48)
    torch.nn.init.zeros_(op.attn.qkv.weight.data[:48])
    torch.nn.init.ones_(op.attn.qkv.bias.data[:48])  # all queries are of ones
    torch.nn.init.zeros_(op.attn.qkv.weight.data[48:96])
    op.attn.qkv.weight.data[48:96, 0] = -1e3  # keys go by the first channel
    others = torch.zeros(2, 17, 48)
    others[..., 0] = 10.0
    x[..., 0] = -10.0
    actual = pairwise_block(op, x, torch.tensor([1, 0]), others)
    torch.testing.assert_close(actual, op(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_attention_map(fusion):
    op, x = block(), torch.randn(2, 17, 48)
    q, k, _ = op.attn.qkv(op.norm1(x)).view(2, 17, 3, 3, 16).permute(2, 0, 3, 1, 4)
    heads = (q @ k.mT / 4).softmax(-1)
    fused = {"mean": heads.mean(1), "max": heads.amax(1), "min": heads.amin(1)}[fusion]
    actual = attention_map(op, x, fusion)
    torch.testing.assert_close(actual, fused / fused.sum(-1, keepdim=True))
    torch.testing.assert_close(actual.sum(-1), torch.ones(2, 17))


def test_rollout_multiplies_later_maps_from_the_left():
    first, second = maps(2)
    halves = [(m + torch.eye(5)) / 2 for m in (first, second)]
    actual = attention_rollout([first, second])
    torch.testing.assert_close(actual, halves[1] @ halves[0])
    assert (actual - halves[0] @ halves[1]).abs().max() > 1e-3


def test_rows_of_the_rollout_sum_to_one():
    rolled = attention_rollout(maps(12, tokens=65))
    assert (rolled.sum(-1) - 1).abs().max() < 1e-6


def test_rollout_of_uniform_attention():
    n = 17
    rolled = attention_rollout([torch.full((1, n, n), 1 / n)] * 12)
    expected = (1 - 2**-12) / n + 2**-12
    assert rolled[0, 0, 0] == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(rolled[0, 0, 1:], torch.full((n - 1,), (1 - 2**-12) / n))


def test_rollout_of_identities_selects_nevertheless():
    rolled = attention_rollout([torch.eye(17)[None]] * 12)
    torch.testing.assert_close(rolled, torch.eye(17)[None], rtol=0, atol=0)
    index = tiny(glca_ratio=0.3).select(rolled[:, 0])
    assert index.shape == (1, 5) and len(index.unique()) == 5 and index[0, 0] == 0


@pytest.mark.parametrize("residual", [0.0, 0.3, 0.5])
def test_scores_are_the_class_tokens_row_of_the_rollout(residual):
    model = tiny(rollout_residual=residual).eval()
    for part in model.blocks:
        torch.nn.init.normal_(part.attn.qkv.weight, std=0.5)
    x = torch.randn(2, 17, 48)
    inputs, attentions = [], []
    for part in model.blocks:
        inputs.append(x)
        attentions.append(attention_map(part, x))
        x = part(x)
    rolled = attention_rollout(attentions, residual)
    torch.testing.assert_close(model.rollout_scores(inputs), rolled[:, 0])


@pytest.mark.parametrize(
    ("size", "ratio", "k"),
    [
        ((448, 448), 0.1, 78),
        ((256, 128), 0.3, 38),
        ((256, 256), 0.3, 76),
        ((224, 224), 0.1, 19),
        ((64, 64), 0.3, 4),
        ((160, 160), 0.29, 29),
        ((32, 32), 0.1, 0),
    ],
)
def test_number_of_queries(size, ratio, k):
    model = tiny(glca_ratio=ratio, depth=1).eval()
    with torch.inference_mode():
        features = model.forward_features(images(1, *size))
    assert features.glca.shape == (1, k + 1, 48)
    assert features.sa.shape == (1, size[0] * size[1] // 256 + 1, 48)


def test_selection_takes_the_highest_scores():
    scores = torch.tensor([[0.9, 0.1, 0.4, 0.2, 0.3, 0.0, 0.6, 0.5, 0.05, 0.15, 0.25]])
    assert tiny(glca_ratio=0.3).select(scores).tolist() == [[0, 6, 7, 2]]


def states(model, x):
    """Inputs of all blocks of SA, and what the last one gives."""
    result = [model._pos_embed(model.patch_embed(x))]
    for part in model.blocks:
        result.append(part(result[-1]))
    return result


@pytest.mark.parametrize("depth", [1, 2])
def test_glca_of_the_network_by_definition(depth):
    """The patches of the highest scores, then the blocks of GLCA on all that SA gives."""
    model = tiny(glca_ratio=0.3, glca_depth=depth).eval()
    for part in model.blocks:
        torch.nn.init.normal_(part.attn.qkv.weight, std=0.5)
    x = images(2)
    *inputs, tokens = states(model, x)
    attentions = [attention_map(*pair) for pair in zip(model.blocks, inputs, strict=True)]
    scores = attention_rollout(attentions)[:, 0, 1:]
    best = scores.argsort(descending=True)[:, :4]
    index = F.pad(best + 1, (1, 0))
    local = tokens
    for part in model.glca_blocks:
        local = global_local_block(part, local, tokens)
    expected = model.glca_norm(local).gather(1, index[..., None].expand(-1, -1, 48))
    actual = model.forward_features(x).glca
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_logits_do_not_depend_on_the_share_of_patches():
    """Queries do not see one another, and the classifier reads the class token's alone."""
    few, many, none = (tiny(glca_ratio=ratio).eval() for ratio in (0.1, 1.0, 0.0))
    many.load_state_dict(few.state_dict())
    none.load_state_dict(few.state_dict())
    x = images()
    torch.testing.assert_close(many(x), few(x))
    torch.testing.assert_close(none(x), few(x))


def test_self_attention_is_timms_network():
    plain = timm.create_model(
        "deit_tiny_patch16_224", depth=3, embed_dim=48, num_classes=5, img_size=64
    ).eval()
    model = tiny(glca_depth=0).eval()
    model.load_state_dict(plain.state_dict())
    x = images()
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model.forward_features(x).sa, plain.forward_features(x))


def test_inference_is_the_mean_of_probabilities():
    model = tiny().eval()
    x = images()
    features = model.forward_features(x)
    sa = model.head(features.sa[:, 0]).softmax(-1)
    glca = model.glca_head(features.glca[:, 0]).softmax(-1)
    torch.testing.assert_close(model(x).softmax(-1), (sa + glca) / 2)
    assert features.pwca is None


def test_fusing_equal_logits_keeps_them():
    logits = torch.randn(3, 5)
    fused = fuse_logits(logits, logits)
    torch.testing.assert_close(fused, logits.log_softmax(-1))
    total = 2 * fuse_logits(logits, -logits).exp()
    torch.testing.assert_close(total, logits.softmax(-1) + (-logits).softmax(-1))
    assert (total >= 0).all() and (total <= 2).all()


def test_descriptor_is_of_both_class_tokens():
    model = tiny(num_classes=0).eval()
    x = images()
    features = model.forward_features(x)
    descriptor = model(x)
    assert descriptor.shape == (4, 96) and model.head_hidden_size == 96
    expected = torch.cat((features.sa[:, 0], features.glca[:, 0]), -1)
    torch.testing.assert_close(descriptor, expected)
    assert tiny(num_classes=0, glca_depth=0).eval()(x).shape == (4, 48)


@pytest.mark.parametrize("partner", ["pwca", "sa"])
def test_evaluation_knows_nothing_of_pwca(partner):
    model = tiny(pwca_partner=partner).eval()
    without = tiny(pwca_depth=0).eval()
    without.load_state_dict(model.state_dict(), strict=True)
    x = images()
    torch.testing.assert_close(model(x), without(x), rtol=0, atol=0)
    torch.testing.assert_close(model(x.flip(0)), model(x).flip(0))
    torch.testing.assert_close(model(x[:1]), model(x)[:1])


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, (True, True, True)),
        ({"glca_depth": 0}, (True, False, True)),
        ({"pwca_depth": 0}, (True, True, False)),
        ({"glca_depth": 0, "pwca_depth": 0}, (True, False, False)),
    ],
)
def test_training_gives_the_branches_in_use(kwargs, expected):
    out = tiny(**kwargs).train()(images())
    assert tuple(branch is not None for branch in out[:3]) == expected
    assert all(branch.shape == (4, 5) for branch in out[:3] if branch is not None)
    features = tiny(num_classes=0, **kwargs).train()(images())
    assert all(branch.shape == (4, 48) for branch in features[:3] if branch is not None)
    assert features.loss_weights.shape == (3,)


@pytest.mark.parametrize("partner", ["pwca", "sa"])
@pytest.mark.parametrize("depth", [1, 3])
def test_pwca_of_the_network_by_definition(partner, depth):
    model = tiny(pwca_partner=partner, pwca_depth=depth).train()
    model.draw_partners = lambda x: torch.tensor([2, 3, 1, 0])
    x = images()
    tokens = pair = model._pos_embed(model.patch_embed(x))
    for i, part in enumerate(model.blocks):
        others = (tokens if partner == "sa" else pair)[[2, 3, 1, 0]]
        if i < depth:
            pair = torch.stack(
                [pairwise_by_definition(part, *both)[0] for both in zip(pair, others, strict=True)]
            )
        else:
            pair = part(pair)
        tokens = part(tokens)
    out = model(x)
    expected = model.head(model.norm(pair)[:, 0])
    torch.testing.assert_close(out.pwca, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.sa, model.head(model.norm(tokens)[:, 0]))
    assert (out.pwca - out.sa).abs().max() > 1e-6


def test_partners_are_others_and_vary():
    model, x = tiny(), torch.zeros(7, 1)
    draws = torch.stack([model.draw_partners(x) for _ in range(64)])
    assert (draws != torch.arange(7)).all()
    assert (draws.sort(-1).values == torch.arange(7)).all()
    assert len(draws.unique(dim=0)) == 6


def test_a_single_image_cannot_be_paired():
    with pytest.raises(ValueError, match="drop_last=True"):
        tiny().train()(images(1))
    assert tiny(pwca_depth=0).train()(images(1)).pwca is None


def test_one_training_step_reaches_everything():
    model = tiny(depth=12, embed_dim=192, glca_ratio=0.3).train()
    DualCrossAttentionLoss()(model(images()), torch.arange(4)).backward()
    assert all(p.grad.any() for p in model.parameters())


def test_rollout_has_no_gradient():
    model = tiny().train()
    inputs = [torch.randn(2, 17, 48, requires_grad=True) for _ in model.blocks]
    assert not model.rollout_scores(inputs).requires_grad


@pytest.mark.parametrize("losses", [(2.0, 3.0, 0.5), (2.0, None, 0.5), (2.0, None, None)])
def test_combined_loss(losses):
    losses = [None if loss is None else torch.tensor(loss) for loss in losses]
    w = torch.zeros(3, requires_grad=True)
    used = torch.tensor([loss is not None for loss in losses])
    values = torch.tensor([0.0 if loss is None else loss for loss in losses])
    total = combine_losses(losses, w)
    torch.testing.assert_close(total, values.sum() / 2)
    total.backward()
    torch.testing.assert_close(w.grad, torch.where(used, (1 - values) / 2, 0.0))


def test_loss_weights_rest_at_the_logarithms_of_the_losses():
    losses = [torch.tensor(loss) for loss in (2.0, 3.0, 0.5)]
    w = torch.stack(losses).log().requires_grad_()
    total = combine_losses(losses, w)
    total.backward()
    torch.testing.assert_close(w.grad, torch.zeros(3))
    assert total.item() == pytest.approx((3 + math.log(2 * 3 * 0.5)) / 2)


def test_loss_of_branches():
    out = tiny()(images())
    target = torch.arange(4)
    each = [F.cross_entropy(logits, target, label_smoothing=0.1) for logits in out[:3]]
    loss = DualCrossAttentionLoss(label_smoothing=0.1)
    torch.testing.assert_close(loss(out, target), sum(each) / 2)
    torch.testing.assert_close(loss(out.sa, target), each[0])
    own = DualCrossAttentionLoss(lambda logits, target: logits[target, target].square().sum())
    squares = [logits[target, target].square().sum() for logits in out[:3]]
    torch.testing.assert_close(own(out, target), sum(squares) / 2)


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [([None, None, None], 3, "no loss to combine"), ([torch.ones(())] * 3, 2, "as many weights")],
)
def test_impossible_losses_are_named(losses, weights, message):
    with pytest.raises(ValueError, match=message):
        combine_losses(losses, torch.zeros(weights))


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_weights_of_deit_load(prefix, tmp_path):
    """The position embedding is resized; what is new keeps its initial values."""
    plain = timm.create_model("deit_tiny_patch16_224", depth=3, embed_dim=48, num_classes=5)
    state_dict = {prefix + key: value for key, value in plain.state_dict().items()}
    torch.save({"model": state_dict}, tmp_path / "deit.pth")
    model = tiny(img_size=(256, 128), glca_depth=1, checkpoint_path=tmp_path / "deit.pth").eval()
    assert model.pos_embed.shape == (1, 129, 48)
    qkv = model.glca_blocks[0].attn.qkv.weight
    assert qkv.std().item() == pytest.approx(0.02, rel=0.1)
    dynamic = timm.create_model(
        "deit_tiny_patch16_224", depth=3, embed_dim=48, num_classes=5, dynamic_img_size=True
    ).eval()
    dynamic.load_state_dict(plain.state_dict())
    x = images(2, 256, 128)
    torch.testing.assert_close(
        model.forward_features(x).sa, dynamic.forward_features(x), rtol=1e-4, atol=1e-5
    )


def test_pretrained_starts_from_a_plain_network(tmp_path):
    plain = timm.create_model("deit_tiny_patch16_224", depth=3, embed_dim=48)
    torch.save(plain.state_dict(), tmp_path / "deit.pth")
    model = tiny(
        num_classes=7, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "deit.pth")}
    )
    torch.testing.assert_close(model.blocks[2].mlp.fc1.weight, plain.blocks[2].mlp.fc1.weight)
    assert model.head.out_features == model.glca_head.out_features == 7


def test_part_of_glca_is_refused(tmp_path):
    state_dict = tiny().state_dict()
    del state_dict["glca_norm.bias"]
    torch.save(state_dict, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing: glca_norm\.bias"):
        load_checkpoint(tiny(), tmp_path / "part.pth")


def test_features_only_loads_whole_networks(tmp_path):
    model = tiny()
    torch.save(model.state_dict(), tmp_path / "dcal.pth")
    features = tiny(features_only=True, out_indices=(0, 1))
    assert load_checkpoint(features, tmp_path / "dcal.pth").is_whole
    torch.testing.assert_close(
        features.model.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight
    )
    assert not any("glca" in key or "loss" in key for key in features.state_dict())


def test_images_of_another_size_see_a_resized_position_embedding():
    model = tiny(num_classes=0).eval()
    resized = tiny(num_classes=0).eval()
    resized.load_state_dict(model.state_dict())
    resized.set_input_size(img_size=(96, 80))
    assert resized.pos_embed.shape == (1, 31, 48)
    x = images(2, 96, 80)
    torch.testing.assert_close(model(x), resized(x))


def test_loss_weights_have_no_decay():
    assert {"loss_weights", "pos_embed", "cls_token"} <= tiny().no_weight_decay()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"glca_ratio": 1.5}, "glca_ratio must be"),
        ({"rollout_residual": -0.1}, "rollout_residual must be"),
        ({"pwca_partner": "glca"}, "pwca_partner must be"),
        ({"pwca_depth": 4}, "between 0 and the depth, 3"),
        ({"head_fusion": "median"}, "head_fusion must be"),
        ({"global_pool": "avg"}, "global_pool must be"),
        ({"class_token": False, "global_pool": ""}, "class token"),
        ({"reg_tokens": 4}, "no registers"),
    ],
)
def test_impossible_arguments_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        tiny(device="meta", **bad)
