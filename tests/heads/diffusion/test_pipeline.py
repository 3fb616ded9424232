"""Pipelines of diffusers take instances, and are themselves without them."""

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
)

from visattn.heads.diffusion import pipeline as pipelines
from visattn.heads.diffusion.pipeline import (
    StableDiffusionImg2ImgROICtrlPipeline,
    StableDiffusionROICtrlPipeline,
    StableDiffusionXLROICtrlPipeline,
)
from visattn.heads.diffusion.roictrl import ROIFuser, apply, is_applied

CAT = {"bbox": [0.0, 0.1, 0.5, 0.9], "caption": "a grey cat"}
DOG = {"bbox": [0.5, 0.0, 1.0, 0.7], "caption": "a dog"}
STEPS = 5
SIDE = 64


def open_gates(unet):
    apply(unet, roi_sizes={8: 9, 16: 7})  # Smaller than those of weights, to be fast.
    for name, parameter in unet.named_parameters():
        if "alpha" in name:
            parameter.data.fill_(0.5)
    return unet


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def make(components):
    """Makes a pipeline of a class, with a UNet of its own."""

    def make(cls, with_roictrl=True, **more):
        parts = {**components, "unet": copy.deepcopy(components["unet"]), **more}
        torch.manual_seed(1)
        if with_roictrl:
            open_gates(parts["unet"])
        return quiet(cls(**parts, requires_safety_checker=False))

    return make


@pytest.fixture
def pipe(make):
    return make(StableDiffusionROICtrlPipeline)


@pytest.fixture
def plain(make):
    return make(StableDiffusionPipeline, with_roictrl=False)


def generate(pipe, prompt="a room", seed=0, **kwargs):
    kwargs = {"num_inference_steps": STEPS, "output_type": "latent", **kwargs}
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, generator=generator, **kwargs).images


class Counter:
    """Counts the calls of a fuser."""

    def __init__(self, pipe):
        self.calls = 0
        fuser = next(m for m in pipe.unet.modules() if isinstance(m, ROIFuser))
        fuser.register_forward_hook(self.count)

    def count(self, *_):
        self.calls += 1


def test_without_instances_it_is_the_plain_pipeline(pipe, plain):
    assert torch.equal(generate(pipe), generate(plain))
    assert torch.equal(generate(pipe, instances=[[CAT]])[0], generate(pipe, instances=[CAT])[0])
    assert torch.equal(generate(pipe), generate(plain))


@pytest.mark.parametrize(("beta", "steps"), [(0.0, 0), (0.5, 2), (1.0, 5)])
def test_instances_have_an_effect_in_the_first_steps(beta, steps, pipe, plain):
    counter = Counter(pipe)
    out = generate(pipe, instances=[[CAT, DOG]], roictrl_scheduled_sampling_beta=beta)
    assert counter.calls == steps
    expected = generate(plain)
    assert torch.equal(out, expected) == (steps == 0)
    assert torch.allclose(out, expected, atol=1e-3) == (steps == 0)


def test_a_generator_determines_the_image_alone(pipe):
    outs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outs.append(generate(pipe, instances=[[CAT, DOG]], eta=1.0))
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], generate(pipe, instances=[[CAT, DOG]], seed=1, eta=1.0))


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_batches_are_their_images(scale, pipe):
    latents = torch.randn(4, 4, 8, 8)
    kwargs = {"guidance_scale": scale}
    both = generate(
        pipe,
        ["a room", "a street"],
        instances=[[CAT, DOG], []],
        num_images_per_prompt=2,
        latents=latents,
        negative_prompt=["dark", "wet"],
        **kwargs,
    )
    cases = [("a room", [CAT, DOG], "dark"), ("a street", [], "wet")]
    for i, (prompt, instances, negative) in enumerate(cases):
        for j in range(2):
            own = latents[2 * i + j][None]
            out = generate(
                pipe,
                prompt,
                instances=[instances],
                latents=own,
                negative_prompt=negative,
                **kwargs,
            )
            torch.testing.assert_close(both[2 * i + j], out[0], atol=1e-3, rtol=1e-3)


def test_captions_boxes_and_negative_prompts_matter(pipe):
    moved = {**CAT, "bbox": DOG["bbox"]}
    renamed = {**CAT, "caption": "a red ball"}
    kwargs = [
        {"instances": [[CAT]]},
        {"instances": [[moved]]},
        {"instances": [[renamed]]},
        {"instances": [[]]},
        {"instances": [[CAT]], "negative_prompt": "blurred"},
        {"instances": [[CAT]], "roictrl_unconditional": "none"},
    ]
    outs = [generate(pipe, **own) for own in kwargs]
    for i in range(len(outs)):
        assert outs[i].isfinite().all()
        for j in range(i):
            assert not torch.allclose(outs[i], outs[j], atol=1e-3)


def test_captions_are_encoded_as_prompts_are(pipe):
    """So that encoded ones may be given in their place, as for prompt weighting."""
    encoded, _ = pipe.encode_prompt(CAT["caption"], "cpu", 1, False)
    given = {"bbox": CAT["bbox"], "caption_embeds": encoded[0]}
    expected = generate(pipe, instances=[[CAT, DOG]])
    torch.testing.assert_close(generate(pipe, instances=[[given, DOG]]), expected)


def test_of_too_many_instances_the_first_have_an_effect(pipe):
    many = [{**DOG, "bbox": [0.03 * i, 0.1, 0.03 * i + 0.1, 0.4]} for i in range(30)]
    expected = generate(pipe, instances=[many], num_inference_steps=1)
    with pytest.warns(UserWarning, match="image 0 has 32 instances: only the first 30"):
        out = generate(pipe, instances=[[*many, CAT, DOG]], num_inference_steps=1)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"instances": [[CAT], [DOG]]}, "2 lists, and there are 1 prompts"),
        ({"instances": [["a cat"]]}, "instance 0 of image 0 must be a dictionary"),
        ({"instances": [[{"bbox": [0, 0, 1, 1]}]]}, "dictionary of bbox and caption"),
        ({"instances": [[{**CAT, "bbox": [0, 0, 1]}]]}, r"must be \[x1, y1, x2, y2\]"),
        ({"instances": [[{**CAT, "bbox": [0, 0, 64, 64]}]]}, "divide pixels by width and height"),
        ({"instances": [], "roictrl_unconditional": "all"}, "one of negative, none"),
        ({"instances": [], "roictrl_scheduled_sampling_beta": 30}, "share of the steps"),
    ],
)
def test_mistakes_say_what_is_wrong_and_leave_nothing_behind(kwargs, message, pipe, plain):
    with pytest.raises(ValueError, match=message):
        generate(pipe, **kwargs)
    assert torch.equal(generate(pipe), generate(plain))


def test_instances_need_roictrl_in_the_unet(make):
    pipe = make(StableDiffusionROICtrlPipeline, with_roictrl=False)
    with pytest.raises(ValueError, match="load_roictrl, first"):
        generate(pipe, instances=[[CAT]])


# Files.


def test_pipelines_of_diffusers_load_and_are_saved_for_them(pipe, plain, tmp_path):
    plain.save_pretrained(tmp_path / "plain")
    pipe.save_roictrl(tmp_path / "own.safetensors")
    loaded = quiet(StableDiffusionROICtrlPipeline.from_pretrained(tmp_path / "plain"))
    assert not is_applied(loaded.unet)
    loaded.load_roictrl(tmp_path / "own.safetensors")
    expected = generate(pipe, instances=[[CAT]])
    assert torch.equal(generate(loaded, instances=[[CAT]]), expected)

    loaded.save_pretrained(tmp_path / "whole")
    again = quiet(StableDiffusionROICtrlPipeline.from_pretrained(tmp_path / "whole"))
    assert torch.equal(generate(again, instances=[[CAT]]), expected)
    theirs = quiet(StableDiffusionPipeline.from_pretrained(tmp_path / "whole"))
    assert list(theirs.unet.state_dict()) == list(plain.unet.state_dict())
    assert torch.equal(generate(theirs), generate(plain))


def test_half_precision_loads_and_runs(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    low = StableDiffusionROICtrlPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in low.unet.parameters()} == {torch.bfloat16}
    image = generate(quiet(low), instances=[[CAT]], output_type="np")
    expected = generate(pipe, instances=[[CAT]], output_type="np")
    assert np.abs(image - expected).mean() < 0.05


def test_another_pipeline_takes_over_the_components(pipe):
    other = quiet(StableDiffusionImg2ImgROICtrlPipeline.from_pipe(pipe))
    assert other.unet is pipe.unet
    image = torch.rand(1, 3, SIDE, SIDE)
    assert generate(other, image=image, instances=[[CAT]]).isfinite().all()


# What they are composed with.


def image(seed=0):
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def mask():
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[..., 16:48, 16:48] = 1
    return mask


@pytest.fixture
def controlnet(components):
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(components["unet"]).eval()
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def t2i_adapter():
    torch.manual_seed(0)
    adapter = T2IAdapter(
        in_channels=3, channels=[32, 64], num_res_blocks=1, downscale_factor=8,
        adapter_type="full_adapter",
    )  # fmt: skip
    return adapter.eval()


VARIANTS = {
    "Img2Img": (StableDiffusionImg2ImgPipeline, lambda: {"image": image()}),
    "Inpaint": (StableDiffusionInpaintPipeline, lambda: {"image": image(), "mask_image": mask()}),
    "ControlNet": (StableDiffusionControlNetPipeline, lambda: {"image": image()}),
    "ControlNetImg2Img": (
        StableDiffusionControlNetImg2ImgPipeline,
        lambda: {"image": image(), "control_image": image(1)},
    ),
    "ControlNetInpaint": (
        StableDiffusionControlNetInpaintPipeline,
        lambda: {"image": image(), "mask_image": mask(), "control_image": image(1)},
    ),
    "Adapter": (
        StableDiffusionAdapterPipeline,
        lambda: {"image": image(), "height": SIDE, "width": SIDE},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_take_instances_beside_their_images(name, make, controlnet):
    base, inputs = VARIANTS[name]
    more = {"controlnet": controlnet} if "ControlNet" in name else {}
    if name == "Adapter":
        more = {"adapter": t2i_adapter()}
    pipe = make(getattr(pipelines, f"StableDiffusion{name}ROICtrlPipeline"), **more)
    plain = make(base, with_roictrl=False, **more)
    expected = generate(plain, **inputs())
    assert torch.equal(generate(pipe, **inputs()), expected)
    counter = Counter(pipe)
    out = generate(pipe, instances=[[CAT]], roictrl_scheduled_sampling_beta=0.5, **inputs())
    steps = getattr(pipe, "_num_timesteps", STEPS)  # Of images, strength leaves out some.
    assert counter.calls == int(0.5 * steps) > 0
    assert out.isfinite().all()
    assert not torch.allclose(out, expected, atol=1e-3)
    none = generate(pipe, instances=[[CAT]], roictrl_scheduled_sampling_beta=0.0, **inputs())
    assert torch.equal(none, expected)


def test_stable_diffusion_xl_takes_instances(components, make_unet):
    """Its captions are of both text encoders."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    encoder = components["text_encoder"]
    config = CLIPTextConfig(**{**encoder.config.to_dict(), "projection_dim": 32})
    unet = make_unet(
        sample_size=8,
        cross_attention_dim=64,
        transformer_layers_per_block=(2, 1),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    keys = ("vae", "text_encoder", "tokenizer", "scheduler")
    pipe = quiet(
        StableDiffusionXLROICtrlPipeline(
            **{key: components[key] for key in keys},
            text_encoder_2=CLIPTextModelWithProjection(config).eval(),
            tokenizer_2=components["tokenizer"],
            unet=open_gates(unet),
        )
    )
    expected = generate(pipe)
    out = generate(pipe, instances=[[CAT, DOG]])
    assert out.isfinite().all()
    assert not torch.allclose(out, expected, atol=1e-3)
    assert torch.equal(generate(pipe), expected)


@pytest.mark.parametrize("order", ["before", "after"])
def test_lora_files_load_before_and_after(order, pipe, plain, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    plain.unet.add_adapter(
        LoraConfig(r=2, target_modules=["attn2.to_k", "attn2.to_v"], init_lora_weights=False)
    )
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(plain.unet)
    )
    scene = {"instances": [[CAT]]}
    expected, keys = generate(pipe, **scene), list(pipe.unet.state_dict())
    if order == "after":
        pipe.load_lora_weights(tmp_path)
    else:
        pipe.save_roictrl(tmp_path / "roictrl.safetensors")
        plain.unet.delete_adapters("default")
        pipe = quiet(
            StableDiffusionROICtrlPipeline(**plain.components, requires_safety_checker=False)
        )
        pipe.load_lora_weights(tmp_path)
        pipe.load_roictrl(tmp_path / "roictrl.safetensors")
    assert not torch.allclose(generate(pipe, **scene), expected, atol=1e-3)
    scaled = generate(pipe, **scene, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(scaled, expected, atol=1e-4, rtol=1e-4)
    pipe.unload_lora_weights()
    assert torch.equal(generate(pipe, **scene), expected)
    assert list(pipe.unet.state_dict()) == keys


def ip_adapter(unet):
    """Weights of an IP-Adapter with 4 tokens an image, for embeddings of 16 channels."""
    torch.manual_seed(0)
    dim, state = unet.config.cross_attention_dim, {}
    for i, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
            for part in ("k", "v"):
                state[f"{i}.to_{part}_ip.weight"] = torch.randn(width, dim) / dim**0.5
    projection = {
        "proj.weight": torch.randn(4 * dim, 16) / 4,
        "proj.bias": torch.zeros(4 * dim),
        "norm.weight": torch.ones(dim),
        "norm.bias": torch.zeros(dim),
    }
    return {"image_proj": projection, "ip_adapter": state}


@pytest.mark.parametrize("masked", [False, True])
def test_ip_adapter_speaks_to_regions_too(masked, pipe):
    plain = generate(pipe, instances=[[CAT, DOG]])
    pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet)])
    pipe.set_ip_adapter_scale(0.7)
    embeds = torch.randn(2, 1, 16)  # Unconditional and conditional.
    kwargs = {"ip_adapter_image_embeds": [embeds]}
    if masked:
        kwargs["cross_attention_kwargs"] = {"ip_adapter_masks": [torch.ones(1, 1, SIDE, SIDE)]}
    tokens = []
    block = pipe.unet.mid_block.attentions[0].transformer_blocks[0]
    block.roifuser.norm1.register_forward_pre_hook(lambda _, args: tokens.append(args[0]))
    out = generate(pipe, instances=[[CAT, DOG]], **kwargs)
    assert out.isfinite().all()
    assert not torch.allclose(out, plain, atol=1e-3)
    pipe.set_ip_adapter_scale(0.0)
    silent = generate(pipe, instances=[[CAT, DOG]], **kwargs)
    torch.testing.assert_close(silent, plain, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tokens[0], tokens[STEPS], atol=1e-3)


def test_textual_inversion_reaches_captions(pipe, components):
    pipe.tokenizer = copy.deepcopy(components["tokenizer"])
    pipe.text_encoder = copy.deepcopy(components["text_encoder"])
    scene = {"instances": [[{**CAT, "caption": "a <thing>"}]]}
    before = generate(pipe, **scene)
    pipe.load_textual_inversion({"<thing>": torch.randn(2, 32)}, token="<thing>")
    assert not torch.allclose(generate(pipe, **scene), before, atol=1e-3)


@torch.no_grad()
def test_weights_may_be_offloaded(make_unet):
    """As sequential offloading of pipelines does it: weights are elsewhere until they are used."""
    from accelerate import cpu_offload

    from visattn.heads.diffusion.roictrl import Instances

    unet = open_gates(make_unet())
    instances = Instances.from_lists([([CAT["bbox"]], torch.randn(1, 77, 32))])
    inputs = torch.randn(1, 4, 16, 16), 3, torch.randn(1, 77, 32)
    given = {"cross_attention_kwargs": {"roictrl": instances}}
    expected = unet(*inputs, **given).sample
    cpu_offload(unet, "cpu")
    assert unet.position_net.null_position_feature.is_meta
    assert torch.equal(unet(*inputs, **given).sample, expected)


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "LCMScheduler"]
)
def test_schedulers_of_any_kind_work(name, pipe):
    import diffusers

    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    counter = Counter(pipe)
    out = generate(pipe, instances=[[CAT]], roictrl_scheduled_sampling_beta=0.5)
    assert out.isfinite().all()
    assert counter.calls == len(pipe.scheduler.timesteps) // 2
