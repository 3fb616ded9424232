"""AgentSD: its merging and attention against recorded values of the authors' code; the context."""

import math

import pytest
import torch

from visattn.heads.diffusion.agent_sd import (
    AgentAttnProcessor,
    Stage,
    Tokens,
    agent_sd,
    published_stages,
)
from visattn.heads.diffusion.merging import draw_targets, match_tokens

EVERYWHERE = {"max_downsample": 2}
NO_CHANGE = Stage(0.0, 0.0, 0.0)


@pytest.fixture
def unet(make_unet):
    """A UNet whose text has 32 channels."""
    return make_unet()


@pytest.fixture
def call():
    """Calls a UNet on two latents of 16 x 16 at a timestep; gives its output."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 77, 32, generator=generator)

    def run(unet, timestep=900, batch=2):
        with torch.no_grad():
            return unet(sample[:batch], timestep, encoder_hidden_states=text[:batch]).sample

    return run


def filled(*shape):
    """The rule by which the recorded values were made."""
    j = torch.arange(math.prod(shape))
    u = ((1103 * j**2 + 7919 * j + 12345) % 65537).double() / 65537 - 0.5
    return u.view(shape)


@pytest.fixture
def attention():
    """An ``Attention`` of 2 heads of 4 with weights by the rule, in double precision."""
    from diffusers.models.attention_processor import Attention

    attn = Attention(8, heads=2, dim_head=4).double()
    with torch.no_grad():
        for parameter in attn.parameters():
            factor = (12 / parameter.shape[1]) ** 0.5 if parameter.ndim == 2 else 0.5
            parameter.copy_(factor * filled(*parameter.shape))
    return attn


@pytest.fixture
def matching():
    """The matching of the recorded 8 x 8 map without randomness."""
    return match_tokens(12**0.5 * filled(1, 64, 8), draw_targets((8, 8), (4, 4)))


def close(tensor, total, norm):
    return abs(tensor.sum().item() - total) < 1e-6 and abs(tensor.norm().item() - norm) < 1e-6


def test_attends_by_agents_as_the_authors(attention):
    x = 12**0.5 * filled(1, 32, 8)
    out = AgentAttnProcessor()._attend_by_agents(attention, x, x[:, ::4])
    expected = torch.tensor([-1.24388213, -1.92498140, 1.44884837, 0.47683913]).double()
    torch.testing.assert_close(out.flatten()[:4], expected, atol=1e-7, rtol=0)
    assert close(out, 14.403276, 13.867422)


def test_merges_as_the_authors(matching):
    x = 12**0.5 * filled(1, 64, 8)
    merging = matching.merging(25)
    merged, agents = merging.merge(x), matching.merging(60).merge(x)
    assert merged.shape == (1, 39, 8) and close(merged, 3.220768, 17.434955)
    assert agents.shape == (1, 4, 8) and abs(agents.norm().item() - 2.914192) < 1e-6
    first = torch.tensor([-0.55817969, -0.11492241]).double()
    torch.testing.assert_close(agents.flatten()[:2], first, atol=1e-7, rtol=0)
    assert close(merging.unmerge(merged), -11.837473, 20.232322)


@pytest.mark.parametrize(
    ("agent_ratio", "total", "norm"), [(0.95, 5.187869, 8.059391), (0.0, 5.982453, 15.480618)]
)
def test_attends_among_merged_tokens_as_the_authors(attention, matching, agent_ratio, total, norm):
    # Of 64 tokens 25 are merged, and for agents 60.
    stage = Stage(0.0, 0.4, agent_ratio)
    processor, x = AgentAttnProcessor(), 12**0.5 * filled(1, 64, 8)
    merged = matching.merging(25).merge(x)
    if agent_ratio:
        out = processor._attend_by_agents(attention, merged, matching.merging(60).merge(x))
    else:
        out = processor.inner(attention, merged)
    assert close(out, total, norm)
    whole, tokens = processor.attend(attention, x, matching, stage)
    assert tokens == Tokens(64, 39, 4 if agent_ratio else None)
    torch.testing.assert_close(whole, matching.merging(25).unmerge(out))


@pytest.mark.parametrize(
    ("stage", "merged", "agents"),
    [
        (Stage(0.0, 0.4, 0.95, 4, 4), 2458, 256),
        (Stage(0.0, 0.1, 0.95, 4, 4), 3687, 256),
        (Stage(0.0, 0.5, 0.95, 4, 4), 2048, 256),
        (Stage(0.0, 0.4, 0.5, 2, 2), 2458, None),
        # What the authors' function does by default: no agents at all.
        (Stage(0.0, 0.5, 0.8, 2, 2), 2048, None),
        (Stage(0.0, 0.0, 0.95, 4, 4), 4096, 256),
    ],
)
def test_has_the_published_lengths(stage, merged, agents):
    sources = 4096 - 4096 // (stage.sx * stage.sy)
    assert stage.counts(4096, sources) == (merged, agents)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_unmerging_keeps_what_was_not_merged(size):
    x = torch.randn(3, size[0] * size[1], 5)
    generator = torch.Generator().manual_seed(1)
    matching = match_tokens(x, draw_targets(size, (2, 3), generator))
    merging = matching.merging(20)
    back = merging.unmerge(merging.merge(x))
    for sample in range(3):
        kept = matching.sources[sample, 20:]
        torch.testing.assert_close(back[sample, kept], x[sample, kept], atol=0, rtol=0)
    # Groups are as good as their means: merging again changes nothing.
    torch.testing.assert_close(merging.merge(back), merging.merge(x))


def test_every_cell_has_one_target():
    targets = draw_targets((9, 10), (4, 3), torch.Generator().manual_seed(0))
    cells = {(int(t) // 10 // 4, int(t) % 10 // 3) for t in targets}
    assert cells == {(y, x) for y in range(2) for x in range(3)} and len(targets) == 6


def test_merges_the_most_similar_first():
    x = torch.eye(4)[torch.tensor([0, 0, 1, 2])][None]
    x[0, 2] = x[0, 0] + 0.1 * x[0, 2]
    matching = match_tokens(x, torch.tensor([0]))
    assert matching.sources.tolist() == [[1, 2, 3]]
    assert matching.merging(2).groups.tolist() == [[1, 1, 1, 0]]


def test_agents_come_first_and_merging_alone_later(unet, call):
    with agent_sd(unet, **EVERYWHERE) as patch:
        call(unet, 981)
        early = dict(patch.used)
        call(unet, 601)
        assert patch.used == early
        call(unet, 581)
        late = dict(patch.used)
    assert set(early) == set(late)
    assert early["down_blocks.0.attentions.0.transformer_blocks.0"] == Tokens(256, 154, 16)
    assert late["down_blocks.0.attentions.0.transformer_blocks.0"] == Tokens(256, 154, None)


def test_works_in_the_largest_maps_by_default(unet, call):
    with agent_sd(unet) as patch:
        call(unet)
    assert {tokens.tokens for tokens in patch.used.values()} == {256}
    with agent_sd(unet, max_downsample=2) as patch:
        call(unet)
    assert {tokens.tokens for tokens in patch.used.values()} == {256, 64}


@pytest.mark.parametrize("fails", [False, True])
def test_leaving_restores_to_the_bit(unet, call, fails):
    before, keys = call(unet), list(unet.state_dict())
    processors = dict(unet.attn_processors)
    try:
        with agent_sd(unet, **EVERYWHERE):
            assert not torch.equal(call(unet), before)
            assert list(unet.state_dict()) == keys
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert unet.attn_processors == processors
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unet.modules())
    torch.testing.assert_close(call(unet), before, atol=0, rtol=0)


def test_a_stage_without_merging_changes_nothing(unet, call):
    before = call(unet)
    with agent_sd(unet, [NO_CHANGE]) as patch:
        torch.testing.assert_close(call(unet), before, atol=0, rtol=0)
    assert set(patch.used.values()) == {Tokens(256, 256, None)}


def test_equal_calls_are_equal_whatever_ran_between(unet, call):
    with agent_sd(unet, [Stage(0.0, 0.3, 0.0, 2, 2)]):
        first = call(unet, 700)
        torch.rand(3)
        call(unet, 300)
        torch.testing.assert_close(call(unet, 700), first, atol=0, rtol=0)
    with agent_sd(unet, [Stage(0.0, 0.3, 0.0, 2, 2)], seed=1):
        assert not torch.equal(call(unet, 700), first)


def test_batches_of_odd_size_are_not_random(unet, call):
    outputs = []
    for options in ({"seed": 0}, {"seed": 1}, {"use_rand": False}):
        with agent_sd(unet, **options):
            outputs.append(call(unet, batch=1))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_maps_need_not_be_square(unet):
    text = torch.randn(2, 77, 32)
    with agent_sd(unet, **EVERYWHERE) as patch, torch.no_grad():
        out = unet(torch.randn(2, 4, 12, 20), 900, encoder_hidden_states=text).sample
    assert out.shape == (2, 4, 12, 20) and out.isfinite().all()
    assert {tokens.tokens for tokens in patch.used.values()} == {240, 60}


def test_trains_and_checkpointing_changes_no_gradient(unet):
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 32)
    gradients = []
    for checkpointing in (False, True):
        unet.train().zero_grad()
        (unet.enable_gradient_checkpointing if checkpointing else lambda: None)()
        with agent_sd(unet, **EVERYWHERE):
            unet(sample, 900, encoder_hidden_states=text).sample.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in unet.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_lora_acts_on_queries_and_agents(unet, call):
    from peft import LoraConfig

    unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q"]))
    with agent_sd(unet):
        adapted = call(unet)
        unet.disable_adapters()
        assert not torch.equal(call(unet), adapted)


def test_keeps_other_processors(unet, call):
    from diffusers.models.attention_processor import AttnProcessor

    stages = [Stage(0.0, 0.3, 0.0, 2, 2)]
    with agent_sd(unet, stages):
        fused = call(unet)
    unet.set_attn_processor(AttnProcessor())
    with agent_sd(unet, stages):
        torch.testing.assert_close(call(unet), fused, atol=1e-5, rtol=1e-5)
    assert {type(p) for p in unet.attn_processors.values()} == {AttnProcessor}


def test_goes_together_with_roictrl(unet, call, make_instances):
    from visattn.heads.diffusion.roictrl import apply, controlled, remove

    before = call(unet)
    apply(unet, shuffle="never")
    instances = make_instances([[0.1, 0.1, 0.6, 0.9]], [[0.2, 0.0, 1.0, 0.5]])
    with controlled(unet, instances):
        regions = call(unet)
        with agent_sd(unet):
            both = call(unet)
        torch.testing.assert_close(call(unet), regions, atol=0, rtol=0)
    with agent_sd(unet):
        faster = call(unet)
    assert not torch.equal(both, regions) and not torch.equal(both, faster)
    torch.testing.assert_close(call(remove(unet)), before, atol=0, rtol=0)


def test_goes_together_with_ip_adapters(unet):
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0

    processors = {
        name: IPAdapterAttnProcessor2_0(width, 32, num_tokens=(4,)) if "attn2" in name else old
        for name, old in unet.attn_processors.items()
        for width in [64 if "mid_block" in name else 32]
    }
    unet.set_attn_processor(dict(processors))
    attention = unet.down_blocks[0].attentions[0]
    tokens, text = torch.randn(2, 32, 16, 16), torch.randn(2, 7, 32)

    def run(images):
        with torch.no_grad():
            given = text, [images]
            return attention(tokens, encoder_hidden_states=given, return_dict=False)[0]

    images = torch.randn(2, 1, 4, 32)
    with agent_sd(unet) as patch:
        patch._size = (16, 16)
        assert not torch.equal(run(images), run(-images))
        assert patch.used
    assert unet.attn_processors == processors


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_implementations_agree(unet, call, impl):
    with agent_sd(unet, impl=impl, attn_precision="fp32"):
        first = call(unet)
    with agent_sd(unet):
        torch.testing.assert_close(call(unet), first, atol=1e-4, rtol=1e-4)


def test_runs_in_half_precision(unet, call):
    with agent_sd(unet), torch.autocast("cpu", torch.bfloat16):
        assert call(unet).isfinite().all()


def test_the_processor_works_by_itself(unet, call):
    before = call(unet)
    processors = {
        name: AgentAttnProcessor(Stage(sx=2, sy=2)) if name.endswith("attn1.processor") else p
        for name, p in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)
    assert call(unet).shape == before.shape and not torch.equal(call(unet), before)


def test_goes_into_pipelines_by_their_unet(unet, call):
    from types import SimpleNamespace

    scheduler = SimpleNamespace(config={"num_train_timesteps": 100})
    with agent_sd(SimpleNamespace(unet=unet, scheduler=scheduler)) as patch:
        call(unet, 58)
    assert patch.stage == published_stages()[1]


@pytest.mark.parametrize(("steps", "early"), [(50, 20), (10, 4)])
def test_pipelines_have_agents_in_two_fifths_of_their_steps(tiny_diffusion, steps, early):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_diffusion(), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    begins = []

    def note(pipeline, step, timestep, tensors):
        begins.append(patch.stage.begin)
        return tensors

    with agent_sd(pipeline) as patch:
        pipeline("desk", num_inference_steps=steps, output_type="latent", callback_on_step_end=note)
    assert begins == [0.0] * early + [0.4] * (steps - early)


def test_goes_into_stable_diffusion_xl_from_its_first_attention_on(make_unet):
    unet = make_unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
    )
    inputs = torch.randn(2, 4, 16, 16), 900, torch.randn(2, 7, 32)
    with agent_sd(unet), pytest.raises(ValueError, match="raise max_downsample"):
        unet(*inputs)
    with agent_sd(unet, max_downsample=2) as patch:
        unet(*inputs)
    assert {tokens.tokens for tokens in patch.used.values()} == {64} and len(patch.used) == 8


def in_twice(unet, call):
    with agent_sd(unet), agent_sd(unet):
        pass


def replaced(unet, call):
    from diffusers.models.attention_processor import AttnProcessor2_0

    with agent_sd(unet):
        unet.set_attn_processor(AttnProcessor2_0())
        call(unet)


def masked(unet, call):
    with agent_sd(unet):
        unet(
            torch.randn(2, 4, 16, 16),
            900,
            encoder_hidden_states=torch.randn(2, 77, 32),
            attention_mask=torch.ones(2, 256),
        )


def out_of_reach(unet, call):
    with agent_sd(unet, max_downsample=0):
        call(unet)


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (in_twice, ValueError, "already"),
        (replaced, RuntimeError, "replaced while agent_sd was on"),
        (masked, ValueError, "mask of self-attention"),
        (out_of_reach, ValueError, "would do nothing"),
        (lambda unet, call: agent_sd(unet.conv_in).__enter__(), ValueError, "Conv2d has no"),
        (lambda *_: Stage(ratio=1.0), ValueError, r"ratio must be in \[0, 1\)"),
        (lambda *_: Stage(sx=0), ValueError, "sx and sy"),
        (lambda unet, _: agent_sd(unet, [Stage(0.5)]).__enter__(), ValueError, "begins at 0"),
        (lambda *_: AgentAttnProcessor(attn_precision="bf16"), ValueError, "attn_precision"),
        (lambda *_: draw_targets((2, 8), (4, 4)), ValueError, "no cell"),
    ],
)
def test_mistakes_are_named(unet, call, mistake, error, message):
    with pytest.raises(error, match=message):
        mistake(unet, call)
