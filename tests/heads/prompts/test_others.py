"""The other prompts, and the adapters, are what their papers say."""

import math

import pytest
import torch
import torch.nn.functional as F

from visattn.heads.prompts import apply, trainable_state_dict
from visattn.heads.prompts.layers import fourier
from visattn.heads.prompts.pixels import ConvPrompter, FramePrompter, SimAM


@pytest.mark.parametrize("name", ["vpt_deep", "vfpt"])
def test_deep_prompts_are_tokens_that_every_block_replaces(name, small_vit, images):
    model = small_vit()
    apply(model, name, length=4)
    x = model._pos_embed(model.patch_embed(images))
    for block in model.blocks:
        prompts = block.prompts.prompts
        if name == "vfpt":
            prompts = torch.fft.fft2(prompts).real
        x = torch.cat((x[:, :1], prompts.expand(2, -1, -1), x[:, 1:]), 1)
        x = x + block.attn(block.norm1(x))
        x = x + block.mlp(block.norm2(x))
        x = torch.cat((x[:, :1], x[:, 5:]), 1)
    expected = model.forward_head(model.norm(x))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_shallow_prompts_go_through_all_blocks(depth, small_vit, images):
    model = small_vit(depth=depth)
    x = model._pos_embed(model.patch_embed(images))
    prompts = torch.rand(4, 48)
    x = torch.cat((x[:, :1], prompts.expand(2, -1, -1), x[:, 1:]), 1)
    expected = model.head(model.norm(model.blocks(x))[:, 0])
    apply(model, "vpt_shallow", length=4)
    model.blocks[0].prompts.prompts.data.copy_(prompts)
    torch.testing.assert_close(model(images), expected)
    assert model.forward_features(images).shape == (2, 17, 48)


def test_vpt_is_initialised_by_patches_and_width(small_vit):
    prompts = apply(small_vit(), "vpt_deep", length=400).blocks[0].prompts.prompts
    bound = math.sqrt(6 / (3 * 8 * 8 + 48))
    assert 0.98 * bound < prompts.abs().max() <= bound


@pytest.mark.parametrize("name", ["adaptformer", "lora", "bias", "linear"])
def test_adapters_change_nothing_at_first(name, small_vit, images):
    model = small_vit()
    expected = model(images)
    torch.testing.assert_close(apply(model, name)(images), expected)


def test_low_rank_changes_are_merged_weights(small_vit, images):
    model = apply(small_vit(), "lora", rank=2, alpha=6, targets="qv")
    merged = small_vit()
    weights = {k: v for k, v in model.state_dict().items() if "lora" not in k}
    for layer, block in enumerate(model.blocks):
        lora = block.attn.qkv.lora
        lora.up.data.normal_()
        change = torch.zeros(144, 48)
        change[:48] = 3 * lora.up[0] @ lora.down[0]
        change[96:] = 3 * lora.up[1] @ lora.down[1]
        weights[f"blocks.{layer}.attn.qkv.weight"] = block.attn.qkv.weight + change
    merged.load_state_dict(weights)
    torch.testing.assert_close(model(images), merged(images), rtol=1e-4, atol=1e-4)


def test_adapter_runs_beside_the_mlp(small_vit):
    model = apply(small_vit(), "adaptformer", bottleneck=7, scale=0.5)
    block, x = model.blocks[0], torch.randn(2, 17, 48)
    down, up = block.adapter.down, block.adapter.up
    up.weight.data.normal_()
    y = x + block.attn(block.norm1(x))
    expected = y + block.mlp(block.norm2(y)) + 0.5 * up(F.relu(down(y)))
    torch.testing.assert_close(block(x), expected)


def test_bias_trains_biases_and_the_head(small_vit):
    model = apply(small_vit(), "bias")
    trained = trainable_state_dict(model)
    everything = {k for k, _ in model.named_parameters()}
    assert trained.keys() == {k for k in everything if k.endswith("bias")} | {"head.weight"}


def test_frame_lies_around_the_image():
    prompter = FramePrompter((8, 6), padding=2, in_chans=1)
    x = torch.zeros(2, 1, 8, 6)
    framed = prompter(x)
    assert (framed[:, :, 2:6, 2:4] == 0).all()
    framed[:, :, 2:6, 2:4] = 1
    assert (framed != 0).all()
    assert torch.equal(framed[0, :, :2], prompter.up[0])
    assert torch.equal(framed[0, :, 2:6, 4:], prompter.right[0])


def test_convolutional_prompter_adds_its_output():
    prompter, x = ConvPrompter(), torch.randn(2, 3, 16, 16)
    conv1, act, conv2 = prompter.layers
    torch.testing.assert_close(prompter(x), x + conv2(act(conv1(x))))
    assert sum(p.numel() for p in prompter.parameters()) == 6_547


def test_simam_gates_by_deviation():
    x = torch.randn(1, 1, 4, 4)
    pixels = x.flatten()
    mean = pixels.mean()
    variance = ((pixels - mean) ** 2).sum() / 15
    expected = [p * torch.sigmoid((p - mean) ** 2 / (4 * (variance + 1e-3)) + 0.5) for p in pixels]
    torch.testing.assert_close(SimAM()(x).flatten(), torch.stack(expected))


def test_no_share_of_the_transform_is_the_prompts():
    prompts = torch.randn(5, 8)
    assert torch.equal(fourier(prompts, 0.0), prompts)
