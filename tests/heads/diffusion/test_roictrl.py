"""ROICtrl in a UNet is what its definition says, and the UNet is itself without it."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

from visattn.heads.diffusion.roictrl import (
    BoxEmbedding,
    Instances,
    ROIFuser,
    apply,
    controlled,
    fourier_embedding,
    gates,
    is_applied,
    load_roictrl,
    regularisation_loss,
    remove,
    roi_size,
    roictrl_state_dict,
    save_roictrl,
    set_enabled,
)
from visattn.heads.diffusion.roictrl.fuser import level_of

LEFT, RIGHT, WHOLE = [0.0, 0.1, 0.45, 0.9], [0.5, 0.0, 1.0, 0.7], [0.0, 0.0, 1.0, 1.0]
SMALL = {8: 9, 16: 7}
"""Sides of pooled regions that are fast; the definition and the authors' code are of the others."""
BOXES = [[LEFT, RIGHT], [[0.2, 0.2, 0.8, 0.9]]]


def run(unet, inputs, instances=None, **kwargs):
    if instances is not None:
        kwargs["cross_attention_kwargs"] = {"roictrl": instances}
    return unet(**vars(inputs), **kwargs).sample


def set_gates(unet, value):
    for name, parameter in unet.named_parameters():
        if "alpha" in name:
            parameter.data.fill_(value)


@pytest.fixture
def unet(make_unet):
    return apply(make_unet(), roi_sizes=SMALL)


@pytest.fixture
def open_unet(unet):
    """With gates that are open, and null features and biases that are not 0."""
    set_gates(unet, 0.3)
    torch.nn.init.normal_(unet.position_net.null_position_feature)
    return unet


@pytest.fixture
def instances(make_instances):
    return make_instances(*BOXES)


# What it is made of.


@pytest.mark.parametrize(("dim", "count"), [(320, 2_076_547), (640, 8_247_107), (1280, 32_876_227)])
def test_fuser_has_as_many_weights_as_the_authors(dim, count):
    fuser = ROIFuser(dim, 8, device="meta")
    assert sum(p.numel() for p in fuser.parameters()) == count == 20 * dim**2 + 83 * dim + 1987


def test_tiny_unet_gets_as_many_weights_as_computed(make_unet):
    unet = make_unet()
    assert sum(p.numel() for p in unet.parameters()) == 792_964
    state = roictrl_state_dict(apply(unet))
    assert len(state) == 127
    assert sum(p.numel() for p in state.values()) == 493_420


STABLE_DIFFUSION = {
    "1": ({"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768}, 249_204_464),
    "2": (
        {
            "block_out_channels": (320, 640, 1280, 1280),
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        },
        249_204_464,
    ),
    "xl": (
        {
            "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True,
        },
        10 * 8_247_107 + 60 * 32_876_227 + 328_832,
    ),
}


@pytest.mark.parametrize(("config", "count"), STABLE_DIFFUSION.values(), ids=STABLE_DIFFUSION)
def test_stable_diffusion_gets_as_many_weights_as_the_authors(config, count):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = apply(UNet2DConditionModel(**config))
    assert sum(p.numel() for p in roictrl_state_dict(unet).values()) == count


def test_names_are_those_of_the_authors(unet):
    block = "down_blocks.0.attentions.0.transformer_blocks.0.roifuser."
    own = {k.removeprefix(block) for k in roictrl_state_dict(unet) if k.startswith(block)}
    attention = {"to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"}
    assert own == {
        *(f"alpha_{name}" for name in ("roi_self_attn", "coord_self_attn", "dense")),
        *(f"norm{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")),
        *(f"{side}_self_attn.{name}" for side in ("roi", "coord") for name in attention),
        "roiattn_fuser.channel_reduction.weight",
        *(
            f"roiattn_fuser.channel_gate.mlp.{i}.{kind}"
            for i in (0, 2)
            for kind in ("weight", "bias")
        ),
        "context_proj.weight",
        "context_proj.bias",
        *(f"ff.net.{name}.{kind}" for name in ("0.proj", "2") for kind in ("weight", "bias")),
    }
    assert "mid_block.attentions.0.transformer_blocks.0.roifuser.alpha_dense" in unet.state_dict()


# The embedding of boxes.


def test_fourier_embedding_is_its_definition():
    box = torch.tensor([0.1, 0.2, 0.3, 0.4])
    embedding = fourier_embedding(box)
    assert embedding.shape == (64,)
    torch.testing.assert_close(embedding[:8], torch.cat((box.sin(), box.cos())))
    torch.testing.assert_close(embedding[8], (box[0] * 100 ** (1 / 8)).sin())


def test_empty_slots_share_the_null_feature_whatever_their_boxes():
    net = BoxEmbedding()
    torch.nn.init.normal_(net.null_position_feature)
    tokens = net(torch.rand(1, 3, 4), torch.tensor([[0, 1, 0]]))
    torch.testing.assert_close(tokens[0, 0], net.linears(net.null_position_feature))
    torch.testing.assert_close(tokens[0, 2], tokens[0, 0])
    assert not torch.allclose(tokens[0, 1], tokens[0, 0])


def test_half_precision_embeds_boxes_of_full_precision():
    boxes, masks = torch.rand(1, 30, 4), torch.ones(1, 30)
    net = BoxEmbedding()
    expected = net(boxes, masks)
    low = net.to(torch.bfloat16)(boxes, masks).float()
    # The highest frequency times a coordinate in bf16 would be off by 0.2 rad.
    torch.testing.assert_close(low, expected, atol=0.02, rtol=0)


# The UNet as a whole.


def test_without_instances_and_after_removal_the_unet_is_itself(make_unet, inputs):
    unet = make_unet()
    unet.conv_in.requires_grad_(False)
    keys, expected = list(unet.state_dict()), run(unet, inputs)
    flags = [p.requires_grad for p in unet.parameters()]
    apply(unet)
    assert torch.equal(run(unet, inputs), expected)
    set_gates(unet, 0.5)
    remove(unet)
    assert not is_applied(unet)
    assert torch.equal(run(unet, inputs), expected)
    assert list(unet.state_dict()) == keys
    assert [p.requires_grad for p in unet.parameters()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())


@torch.no_grad()
def test_closed_gates_and_no_instance_leave_the_unet_as_it_is(make_unet, inputs, make_instances):
    unet = make_unet()
    expected = run(unet, inputs)
    apply(unet)
    assert torch.equal(run(unet, inputs, make_instances([], [], dim=32)), expected)
    assert not torch.allclose(run(unet, inputs, make_instances(*BOXES)), expected, atol=1e-3)


@torch.no_grad()
def test_disabled_fusers_leave_the_unet_as_it_is(open_unet, inputs, instances):
    expected = run(open_unet, inputs)
    set_enabled(open_unet, False)
    assert torch.equal(run(open_unet, inputs, instances), expected)
    set_enabled(open_unet, True)
    assert not torch.allclose(run(open_unet, inputs, instances), expected, atol=1e-3)


@torch.no_grad()
def test_an_image_without_instances_is_as_in_a_batch_of_its_own(open_unet, inputs, make_instances):
    both = run(open_unet, inputs, make_instances([LEFT], [], dim=32))
    for key, value in vars(inputs).items():
        setattr(inputs, key, value[1:])
    alone = run(open_unet, inputs, make_instances([], dim=32))
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_empty_slots_have_no_effect(open_unet, inputs):
    boxes, text = torch.rand(2, 5, 4), torch.randn(2, 5, 77, 32)
    boxes[..., 2:] = boxes[..., :2] + 0.3
    boxes = boxes / boxes.amax()
    masks = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    given = {"instance_boxes": boxes, "instance_masks": masks, "instance_embeddings": text}
    expected = run(open_unet, inputs, given)
    boxes, text = boxes.clone(), text.clone()
    boxes[masks == 0], text[masks == 0] = torch.rand(7, 4), torch.randn(7, 77, 32)
    changed = {"instance_boxes": boxes, "instance_masks": masks, "instance_embeddings": text}
    assert torch.equal(run(open_unet, inputs, changed), expected)


@torch.no_grad()
def test_lists_are_padded_to_what_dense_tensors_are(open_unet, inputs, make_instances):
    text = torch.randn(2, 30, 77, 32)
    boxes, masks = torch.zeros(2, 30, 4), torch.zeros(2, 30)
    for i, own in enumerate(BOXES):
        boxes[i, : len(own)], masks[i, : len(own)] = torch.tensor(own), 1
    lists = Instances.from_lists([(b, text[i, : len(b)]) for i, b in enumerate(BOXES)])
    dense = Instances.from_dense(boxes, masks, text)
    assert torch.equal(run(open_unet, inputs, lists), run(open_unet, inputs, dense))


@torch.no_grad()
def test_instances_of_a_block_of_code_are_those_given_to_the_call(open_unet, inputs, instances):
    expected, plain = run(open_unet, inputs, instances), run(open_unet, inputs)
    with controlled(open_unet, instances):
        assert torch.equal(run(open_unet, inputs), expected)
        with controlled(open_unet, None):
            assert torch.equal(run(open_unet, inputs), plain)
    with controlled(open_unet, instances, when=lambda: False):
        assert torch.equal(run(open_unet, inputs), plain)
    assert torch.equal(run(open_unet, inputs), plain)


@torch.no_grad()
def test_a_call_that_breaks_off_leaves_nothing_behind(open_unet, inputs, instances):
    expected = run(open_unet, inputs)
    block = open_unet.mid_block.attentions[0].transformer_blocks[0]
    handle = block.attn2.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(open_unet, inputs, instances)
    handle.remove()
    assert torch.equal(run(open_unet, inputs), expected)


@torch.no_grad()
def test_copies_of_a_unet_are_independent(open_unet, inputs, instances):
    expected = run(open_unet, inputs, instances)
    other = copy.deepcopy(open_unet)
    assert torch.equal(run(other, inputs, instances), expected)
    plain = run(open_unet, inputs)
    set_gates(other, 0.0)
    assert torch.equal(run(open_unet, inputs, instances), expected)
    remove(other)
    assert torch.equal(run(other, inputs), plain)
    assert torch.equal(run(open_unet, inputs, instances), expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (24, 16), (18, 10), (5, 7)], ids=str)
def test_maps_of_any_size_are_found_again(open_unet, size, make_instances):
    x = torch.randn(1, 4, *size)
    out = open_unet(
        x,
        3,
        torch.randn(1, 77, 32),
        cross_attention_kwargs={"roictrl": make_instances([LEFT, RIGHT])},
    ).sample
    assert out.shape == x.shape
    assert out.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 16), (16, 12)], ids=str)
def test_an_instance_changes_what_is_near_its_box(make_unet, size):
    fuser = ROIFuser(32, 4, roi_sizes={8: 7}).eval()
    height, width = size
    n, g = torch.randn(2, 1, height * width, 32)
    instances = Instances.from_lists([([[0.25, 0.5, 0.75, 1.0]], torch.zeros(1, 77, 32))])
    call = make_call(instances, size)
    new = fuser(n, torch.randn_like(n), g, lambda tokens: torch.ones_like(tokens), call)
    changed = (new != g).any(-1).view(size)
    ys, xs = changed.nonzero().unbind(1)
    assert (ys.min(), xs.min()) == (height // 2, width // 4)
    assert ys.max() < height
    assert xs.max() < width * 3 // 4


def make_call(instances, size, objs=None):
    from visattn.heads.diffusion.roictrl.fuser import Call

    height, width = size
    sides = torch.tensor([1.0, 8 * width, 8 * height, 8 * width, 8 * height])
    if objs is None:
        objs = torch.zeros(instances.batch_size, instances.max_instances, 64)
    return Call(instances, size, instances.rois * sides, objs)


# Order of the slots.


@torch.no_grad()
def test_slots_are_shuffled_in_training_and_not_at_inference(make_unet, inputs, instances):
    unet = apply(make_unet(), dropout=0.0)

    def out(seed):
        torch.manual_seed(seed)
        return run(unet, inputs, instances)

    assert torch.equal(out(0), out(1))
    unet.train()
    assert torch.equal(out(0), out(0))
    assert 0 < (out(0) - out(1)).abs().max() < 1e-2


@torch.no_grad()
@pytest.mark.parametrize(("shuffle", "same"), [("always", False), ("never", True)])
def test_shuffling_can_be_had_always_or_never(shuffle, same, make_unet, inputs, instances):
    unet = apply(make_unet(), dropout=0.0, shuffle=shuffle).train(shuffle == "never")
    outs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outs.append(run(unet, inputs, instances))
    assert torch.equal(*outs) == same


@torch.no_grad()
def test_the_gate_depends_on_the_order_of_slots(make_unet, inputs):
    unet = apply(make_unet())
    text = torch.randn(2, 77, 32)
    outs = []
    for order in ([0, 1], [1, 0]):
        boxes = torch.tensor([LEFT, RIGHT])[order]
        instances = Instances.from_lists([(boxes, text[order])] * 2)
        outs.append(run(unet, inputs, instances))
    assert 0 < (outs[0] - outs[1]).abs().max() < 1e-2


# The blend.


def fuse(fuser, instances, size=(16, 16), value=1.0):
    """What the fuser gives for a whole image of zeros and regions of a value."""
    n = torch.randn(instances.batch_size, size[0] * size[1], 32)
    g = torch.zeros_like(n)
    out = fuser(n, n, g, lambda tokens: torch.full_like(tokens, value), make_call(instances, size))
    return out.unflatten(1, size)


@pytest.fixture
def even_fuser():
    """All maps weigh the same."""
    fuser = ROIFuser(32, 4, unpool_mode="aligned").eval().requires_grad_(False)
    fuser.roiattn_fuser.channel_reduction.weight.zero_()
    return fuser


def test_maps_that_weigh_the_same_are_averaged_where_they_are(even_fuser, make_instances):
    boxes = [[0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.75, 1.0]]
    out = fuse(even_fuser, make_instances(boxes))[0, :, :, 0]
    share = torch.tensor([1 / 2, 2 / 3, 1 / 2, 0.0]).repeat_interleave(4)
    torch.testing.assert_close(out, share.expand(16, 16))
    # One of two maps in half of the pixels, and one of three in a third.
    expected = torch.tensor([1 / 2, 1 / 3, 1 / 2]).mean()
    torch.testing.assert_close(even_fuser.regularisation, expected)


@pytest.mark.parametrize(("sign", "expected"), [(-1, 1.0), (1, 0.0)])
def test_regularisation_is_what_is_left_to_the_whole_image(sign, expected, make_instances):
    fuser = ROIFuser(32, 4).eval().requires_grad_(False)
    fuser.roiattn_fuser.channel_reduction.weight.fill_(100.0 * sign)
    fuser.roiattn_fuser.channel_gate.mlp[2].bias.fill_(10.0)
    fuse(fuser, make_instances([LEFT], [RIGHT]))
    torch.testing.assert_close(fuser.regularisation, torch.tensor(expected))


def test_regularisation_without_instances_is_zero(even_fuser, make_instances):
    fuse(even_fuser, make_instances([], [], dim=32))
    assert even_fuser.regularisation == 0


def test_regularisation_loss_is_over_blocks_and_asked_for_once(unet, inputs, instances):
    for block in [b for n, b in unet.named_modules() if n.endswith("channel_reduction")]:
        torch.nn.init.zeros_(block.weight)
    for reduction, factor in (("mean", 1), ("sum", 4)):
        run(unet, inputs, instances)
        loss = regularisation_loss(unet, reduction)
        torch.testing.assert_close(loss, torch.tensor(0.5 * factor), atol=2e-3, rtol=0)
        with pytest.raises(ValueError, match="no call of the UNet"):
            regularisation_loss(unet)


def test_gate_sees_maxima_or_means_too(make_instances):
    outs = []
    for gate in ("official_max", "sum"):
        torch.manual_seed(0)
        fuser = ROIFuser(32, 4, gate=gate).eval()
        torch.nn.init.normal_(fuser.roiattn_fuser.channel_reduction.weight)
        torch.nn.init.normal_(fuser.roiattn_fuser.channel_gate.mlp[2].weight)
        outs.append(fuse(fuser, make_instances([LEFT])))
    assert all(out.isfinite().all() for out in outs)
    assert not torch.allclose(*outs)


def test_no_map_of_every_region_is_made(make_instances):
    """More than four regions are maps of all channels neither in the forward pass nor kept."""
    kept = []
    fuser = ROIFuser(32, 4, roi_sizes={8: 7})
    instances = make_instances([WHOLE] * 24)
    n = torch.randn(1, 1024, 32, requires_grad=True)

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = fuser(n, n, n * 2, lambda tokens: tokens * 2, make_call(instances, (32, 32)))
    assert max(kept) < 24 * 32 * 1024
    out.sum().backward()
    assert n.grad.isfinite().all()


# What the authors' code computes.


@torch.no_grad()
def test_outputs_are_those_of_the_authors_code(golden, rule_made):
    from diffusers.models.attention_processor import Attention

    record = golden("roifuser")
    given = record.inputs["output"]
    fuser, net = ROIFuser(32, given["heads"]).eval(), BoxEmbedding()
    attention = Attention(32, cross_attention_dim=16, heads=4, dim_head=8).eval()
    for prefix, module in (("roifuser.", fuser), ("position_net.", net), ("attn2.", attention)):
        state = {k: v for k, v in record.state_dict.items() if k.startswith(prefix)}
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items()})
    assert sum(p.numel() for m in (fuser, net) for p in m.parameters()) == record.params
    text = rule_made("input.instances", (2, 30, 77, 16))
    parts = [(boxes, text[i, : len(boxes)]) for i, boxes in enumerate(given["boxes"])]
    instances = Instances.from_lists(parts)
    objs = net(instances.boxes, instances.masks)
    torch.testing.assert_close(objs[:, :5], torch.from_numpy(record.outputs["objs"]))
    size = tuple(given["latents"])
    n, h = (rule_made(f"input.{k}", (2, size[0] * size[1], 32)) for k in ("normed", "hidden"))
    g = attention(n, rule_made("input.caption", (2, 77, 16)))
    call = make_call(instances, size, objs)
    out = h + fuser(n, h, g, lambda tokens: attention(tokens, instances.text), call)
    expected = torch.from_numpy(record.outputs["output"])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    penalty = torch.from_numpy(record.outputs["regularisation"])
    torch.testing.assert_close(fuser.regularisation, penalty)


# The definition, by loops over slots as the authors have them.


def defined(fuser, n, h, g, attend, instances, objs, size):
    """Section 3 with all maps at once; official unpooling, gate and no shuffling."""
    from visattn.kernels import roi_align, roi_unpool

    height, width = size
    rate = 8
    pooled_size = roi_size(rate)
    boxes = instances.boxes * torch.tensor([width, height] * 2) * rate
    maps = g.transpose(1, 2).unflatten(2, size)
    regions = torch.zeros(len(g), instances.max_instances, *maps.shape[1:])
    taken = 0
    for image in range(len(g)):
        for slot in range(instances.max_instances):
            if not instances.masks[image, slot]:
                continue
            x = n[image].T.unflatten(1, size)[None]
            box = [boxes[image, slot][None]]
            r = roi_align(x, box, pooled_size, 1 / rate, 2, True, impl="reference")
            r = attend(r.flatten(2).transpose(1, 2), taken)
            taken += 1
            r = r + fuser.alpha_roi_self_attn.tanh() * fuser.roi_self_attn(fuser.norm1(r))
            r = r.transpose(1, 2).unflatten(2, (pooled_size, pooled_size))
            unpooled = roi_unpool(r, box, size, 1 / rate, impl="reference")
            regions[image, slot] = unpooled[0]
    x = torch.cat((maps[:, None], regions), 1)
    logits = fuser.roiattn_fuser.channel_reduction(x.flatten(0, 1)).view(*x.shape[:2], *size)
    raw = fuser.roiattn_fuser.channel_gate.mlp(logits.amax((2, 3)))
    logits = logits * raw.sigmoid()[..., None, None]
    logits[x.sum(2) == 0] = torch.finfo(logits.dtype).min
    f = (x * logits.softmax(1)[:, :, None]).sum(1).flatten(2).transpose(1, 2)
    h = h + f
    tokens = fuser.norm2(torch.cat((h, fuser.context_proj(objs)), 1))
    h = h + fuser.alpha_coord_self_attn.tanh() * fuser.coord_self_attn(tokens)[:, : h.shape[1]]
    return h + fuser.alpha_dense.tanh() * fuser.ff(fuser.norm3(h))


def test_fuser_is_its_definition_with_all_gradients(make_instances):
    fuser = ROIFuser(32, 4).eval()
    for name, parameter in fuser.named_parameters():
        if "alpha" in name or "channel" in name:
            torch.nn.init.normal_(parameter) if parameter.ndim else parameter.data.fill_(0.6)
    size = (10, 12)
    instances = make_instances([LEFT, RIGHT, [0.1, 0.3, 0.32, 0.5], WHOLE, RIGHT], [], [LEFT])
    n, h, g = torch.randn(3, 3, size[0] * size[1], 32).requires_grad_().unbind(0)
    objs = torch.randn(3, 30, 64)
    mixing = torch.randn(6, 32, 32) / 6

    def attend(tokens, index=slice(None)):
        return tokens @ (mixing[index] if isinstance(index, slice) else mixing[index][None])

    ours = h + fuser(n, h, g, attend, make_call(instances, size, objs))
    theirs = defined(fuser, n, h, g, attend, instances, objs, size)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    wanted = [n, h, g, *fuser.parameters()]
    weights = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), wanted),
        torch.autograd.grad((theirs * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-4)


@pytest.mark.parametrize(
    ("tokens", "latents", "expected"),
    [
        (4096, (64, 64), (64, 64, 8)),
        (1024, (64, 64), (32, 32, 16)),
        (96, (64, 96), (8, 12, 64)),
        (15, (18, 10), (5, 3, 32)),
    ],
)
def test_tokens_are_the_map_that_strides_give(tokens, latents, expected):
    assert level_of(tokens, latents) == expected


def test_pooled_sides_go_on_as_the_table_does():
    assert [roi_size(rate) for rate in (4, 8, 16, 32, 64, 128)] == [31, 25, 19, 13, 7, 7]
    assert roi_size(16, {16: 5}) == 5


# Training.


ZERO_AT_CLOSED_GATES = ("self_attn.to", "norm", "ff.", "context_proj", "position_net")


def test_closed_gates_pass_gradients_to_what_is_not_behind_them(unet, inputs, instances):
    run(unet, inputs, instances).square().mean().backward()
    for name, parameter in unet.named_parameters():
        if not ("roifuser" in name or "position_net" in name):
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        behind = any(part in name for part in ZERO_AT_CLOSED_GATES)
        if behind or "channel_gate" not in name:
            assert (parameter.grad.abs().max() == 0) == behind, name
    assert any("channel_gate" in n and p.grad.any() for n, p in unet.named_parameters())


def test_open_gates_train_everything(unet, inputs, instances):
    set_gates(unet, 0.1)
    run(unet, inputs, instances).square().mean().backward()
    for name, parameter in roictrl_state_dict(unet).items():
        grad = unet.get_parameter(name).grad
        if "channel_gate.mlp.0" not in name:  # ReLU may close all of it.
            assert grad.any() or parameter.numel() == 0, name


def test_it_learns_and_leaves_the_unet_alone(unet, inputs, instances, tmp_path, make_unet):
    before = {k: v.clone() for k, v in unet.state_dict().items() if "roifuser" not in k}
    before = {k: v for k, v in before.items() if "position_net" not in k}
    optimiser = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=1e-3)
    target = torch.randn(2, 4, 16, 16)
    losses, penalties = [], []
    for _ in range(12):
        loss = F.mse_loss(run(unet, inputs, instances), target)
        penalty = regularisation_loss(unet)
        losses.append(loss.item())
        penalties.append(penalty.item())
        optimiser.zero_grad()
        (loss + 0.01 * penalty).backward()
        optimiser.step()
    assert losses[-1] < losses[0] - 1e-3
    assert abs(penalties[-1] - penalties[0]) > 1e-4
    assert all(abs(gate) > 1e-4 for gate in gates(unet).values())
    assert len(gates(unet)) == 12
    assert all(torch.equal(unet.state_dict()[k], v) for k, v in before.items())

    save_roictrl(unet, tmp_path / "roictrl.safetensors")
    other = load_roictrl(make_unet(), tmp_path / "roictrl.safetensors")
    with torch.no_grad():
        assert torch.equal(run(other, inputs, instances), run(unet, inputs, instances))


@pytest.mark.parametrize("shuffle", ["never", "train_only"])
def test_gradient_checkpointing_changes_nothing(shuffle, make_unet, inputs, instances):
    unet = apply(make_unet(), shuffle=shuffle, roi_sizes=SMALL).train()
    set_gates(unet, 0.1)
    grads = []
    for _ in range(2):
        torch.manual_seed(0)
        unet.zero_grad()
        with controlled(unet, instances):
            out = run(unet, inputs)
        (out.square().mean() + regularisation_loss(unet)).backward()
        assert all(f.regularisation is None for f in unet.modules() if isinstance(f, ROIFuser))
        grads.append({n: unet.get_parameter(n).grad.clone() for n in roictrl_state_dict(unet)})
        unet.enable_gradient_checkpointing()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


# Precision, compilation, and what else goes into a UNet.


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near(dtype, open_unet, inputs, instances):
    expected = run(open_unet, inputs, instances)
    open_unet.to(dtype)
    inputs.sample = inputs.sample.to(dtype)
    inputs.encoder_hidden_states = inputs.encoder_hidden_states.to(dtype)
    out = run(open_unet, inputs, instances)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, atol=0.06, rtol=0.06)


@torch.no_grad()
def test_autocast_is_near(open_unet, inputs, instances):
    expected = run(open_unet, inputs, instances)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(open_unet, inputs, instances)
    torch.testing.assert_close(out.float(), expected, atol=0.06, rtol=0.06)


SHALLOW = {
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("CrossAttnUpBlock2D",),
}


@torch.no_grad()
@pytest.mark.parametrize("config", [SHALLOW, pytest.param({}, marks=pytest.mark.heavy)])
def test_it_compiles_whole(config, make_unet, inputs, instances):
    unet = apply(make_unet(**config))
    set_gates(unet, 0.3)
    expected = run(unet, inputs, instances)
    compiled = torch.compile(unet, backend="aot_eager", fullgraph=True)
    out = run(compiled, inputs, instances)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_attention_slicing_and_freeu_work(open_unet, inputs, instances):
    expected = run(open_unet, inputs, instances)
    open_unet.set_attention_slice(1)
    torch.testing.assert_close(run(open_unet, inputs, instances), expected, atol=1e-5, rtol=1e-4)
    open_unet.set_default_attn_processor()
    open_unet.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    freed = run(open_unet, inputs, instances)
    open_unet.disable_freeu()
    torch.testing.assert_close(run(open_unet, inputs, instances), expected, atol=1e-5, rtol=1e-4)
    assert freed.isfinite().all()


@torch.no_grad()
def test_processors_are_those_of_the_unet_alone(make_unet):
    unet = make_unet()
    names = list(unet.attn_processors)
    assert list(apply(unet).attn_processors) == names


@torch.no_grad()
def test_changes_of_the_cross_attention_reach_regions(open_unet, inputs, instances):
    """LoRA of PEFT, on the value projection of cross-attentions."""
    from peft import LoraConfig

    regions = []
    block = open_unet.down_blocks[0].attentions[0].transformer_blocks[0]
    block.roifuser.norm1.register_forward_pre_hook(lambda _, args: regions.append(args[0]))
    run(open_unet, inputs, instances)
    open_unet.add_adapter(LoraConfig(r=2, target_modules=r".*attn2\.to_v", init_lora_weights=False))
    run(open_unet, inputs, instances)
    open_unet.disable_adapters()
    run(open_unet, inputs, instances)
    assert not torch.allclose(regions[0], regions[1], atol=1e-3)
    assert torch.equal(regions[0], regions[2])
    assert sum(p.numel() for p in roictrl_state_dict(open_unet).values()) == 493_420


@torch.no_grad()
def test_captions_may_differ_by_layer(open_unet, inputs, make_instances):
    """ED-LoRA: what is repeated for every layer is what is given once; other layers differ."""
    expected = run(open_unet, inputs, make_instances(*BOXES))
    instances = make_instances(*BOXES)
    layers = instances.text[:, None].repeat(1, 4, 1, 1)
    inputs.encoder_hidden_states = inputs.encoder_hidden_states[:, None].repeat(1, 4, 1, 1)
    given = [(b, layers[2 * i : 2 * i + len(b)]) for i, b in enumerate(BOXES)]
    assert torch.equal(run(open_unet, inputs, Instances.from_lists(given)), expected)
    layers[:, 3] = 0
    given = [(b, layers[2 * i : 2 * i + len(b)]) for i, b in enumerate(BOXES)]
    assert not torch.equal(run(open_unet, inputs, Instances.from_lists(given)), expected)
    wrong = Instances.from_lists([(b, t[:, :3]) for b, t in given])
    with pytest.raises(ValueError, match="each of 3 layers, and the UNet has 4"):
        run(open_unet, inputs, wrong)


@torch.no_grad()
def test_coordinates_come_from_the_projection_alone(open_unet, inputs, make_instances):
    """Without it all slots are alike, and boxes beyond those of regions have no effect."""
    for name, module in open_unet.named_modules():
        if name.endswith("context_proj"):
            torch.nn.init.zeros_(module.weight)
    moved = make_instances([], [], dim=32)
    expected = run(open_unet, inputs, moved)
    torch.nn.init.normal_(open_unet.position_net.null_position_feature, std=3)
    assert torch.equal(run(open_unet, inputs, moved), expected)


@torch.no_grad()
def test_several_blocks_an_attention_all_get_a_fuser(make_unet, inputs, instances):
    unet = apply(make_unet(transformer_layers_per_block=2))
    assert sum(isinstance(m, ROIFuser) for m in unet.modules()) == 8
    assert run(unet, inputs, instances).isfinite().all()


# Files.


@pytest.mark.parametrize("prefix", ["", "unet.", "module.unet."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_load_in_the_authors_layout(prefix, suffix, open_unet, make_unet, tmp_path):
    from safetensors.torch import save_file

    state = {prefix + k: v.clone() for k, v in roictrl_state_dict(open_unet).items()}
    path = tmp_path / f"roictrl{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    other = load_roictrl(make_unet(), path)
    assert all(torch.equal(v, state[prefix + k]) for k, v in roictrl_state_dict(other).items())


def test_settings_are_stored_with_the_weights(make_unet, tmp_path):
    unet = apply(make_unet(), max_instances=4, unpool_mode="aligned", roi_sizes={8: 9, 16: 7})
    save_roictrl(unet, tmp_path / "own.safetensors")
    other = load_roictrl(make_unet(), tmp_path / "own.safetensors", gate="sum")
    fuser = next(m for m in other.modules() if isinstance(m, ROIFuser))
    assert (fuser.max_instances, fuser.unpool_mode, fuser.gate) == (4, "aligned", "sum")
    assert fuser.roi_sizes == {8: 9, 16: 7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("position_net.linears.0.bias"), "1 missing .position_net.linears.0.bias"),
        (lambda s: s.update({"position_net.other": torch.zeros(1)}), "1 unexpected"),
        (lambda s: s.update({"position_net.linears.0.bias": torch.zeros(3)}), "1 reshaped .*3,"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(change, message, unet, make_unet):
    state = {k: v + 1 for k, v in roictrl_state_dict(unet).items()}
    change(state)
    fresh = make_unet()
    for target in (unet, fresh):
        before = {k: v.clone() for k, v in target.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_roictrl(target, state)
        after = target.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(v, before[k]) for k, v in after.items())


def test_a_unet_can_be_pickled_with_it(open_unet, inputs, instances):
    file = io.BytesIO()
    torch.save(open_unet, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(run(other, inputs, instances), run(open_unet, inputs, instances))


# Mistakes.


def test_more_instances_than_slots_are_an_error():
    with pytest.raises(ValueError, match="image 1 has 31 instances, and there are 30 slots"):
        Instances.from_lists([([], torch.zeros(0, 77, 8)), ([WHOLE] * 31, torch.zeros(31, 77, 8))])
    with pytest.raises(ValueError, match="31 boxes an image"):
        Instances.from_dense(torch.zeros(1, 31, 4), torch.zeros(1, 31), torch.zeros(1, 31, 7, 8))


@pytest.mark.parametrize(
    "box", [[0.5, 0, 0.2, 1], [0, 0, 512, 300], [-0.2, 0, 1, 1], [0, 0.3, 1, 0.3], [0, 0, 1, "nan"]]
)
def test_what_is_no_box_is_an_error(box):
    box = [float(v) for v in box]
    with pytest.raises(ValueError, match="box 1 of image 0 is .* divide pixels by width"):
        Instances.from_lists([([WHOLE, box], torch.zeros(2, 77, 8))])


def test_mistakes_in_calls_say_what_to_do(unet, inputs, make_instances):
    with pytest.raises(ValueError, match="instances of 1 images, and the UNet was given 2"):
        run(unet, inputs, make_instances([LEFT]))
    with pytest.raises(ValueError, match="4 slots, and ROICtrl was applied with max_instances=30"):
        run(unet, inputs, make_instances(*BOXES, max_instances=4))
    with pytest.raises(ValueError, match="must be Instances, or a dictionary"):
        run(unet, inputs, [1, 2])
    with pytest.raises(ValueError, match="tokens are merged or dropped"):
        level_of(100, (16, 16))


def test_mistakes_in_applying_say_what_to_do(unet, make_unet):
    with pytest.raises(ValueError, match="remove.unet. it first"):
        apply(unet)
    with pytest.raises(ValueError, match="GLIGEN"):
        apply(make_unet(attention_type="gated"))
    with pytest.raises(ValueError, match="apply.unet., or load_roictrl, first"):
        remove(make_unet())
    with pytest.raises(ValueError, match="unpool_mode must be one of"):
        apply(make_unet(), unpool_mode="best")
    plain = make_unet(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
    )
    with pytest.raises(ValueError, match="no BasicTransformerBlock"):
        apply(plain)


@torch.no_grad()
def test_blocks_that_were_replaced_do_not_go_unnoticed(open_unet, inputs, instances, make_unet):
    for name, child in make_unet().named_children():
        if name.endswith(("_blocks", "_block")):
            setattr(open_unet, name, child)
    run(open_unet, inputs)
    with pytest.raises(RuntimeError, match="no block used them"):
        run(open_unet, inputs, instances)


# Batches for guidance.


@torch.no_grad()
def test_guidance_doubles_the_batch(open_unet, inputs, instances):
    negative = torch.randn(2, 77, 32)
    double = {key: torch.cat((value, value)) for key, value in vars(inputs).items()}
    double["encoder_hidden_states"][:2] = negative
    for text in (negative, None):
        both = instances.with_unconditional(text)
        assert both.batch_size == 4
        out = open_unet(**double, cross_attention_kwargs={"roictrl": both}).sample
        expected = run(open_unet, inputs, instances)
        torch.testing.assert_close(out[2:], expected, atol=1e-5, rtol=1e-5)
    assert both.counts == (0, 0, 2, 1)


def test_instances_are_repeated_as_prompts_are(instances):
    repeated = instances.repeat(2)
    assert repeated.counts == (2, 2, 1, 1)
    assert torch.equal(repeated.text[2:4], instances.text[:2])
    assert torch.equal(repeated.rois[:, 0], torch.tensor([0, 0, 1, 1, 2, 3.0]))
    assert torch.equal(repeated.rois[4:, 1:], torch.tensor([BOXES[1][0]] * 2))
