"""Baselines behind the interface of instances, on a tiny Stable Diffusion."""

import numpy as np
import pytest
import torch

from visattn.heads.diffusion.grounding import (
    StableDiffusionGroundedPipeline,
    StableDiffusionMaskedAttentionPipeline,
    StableDiffusionPlainPipeline,
)

CUP = {"bbox": [0.0, 0.0, 0.5, 1.0], "caption": "a red cup"}
PEN = {"bbox": [0.5, 0.0, 1.0, 1.0], "caption": "a pen"}
PIPELINES = {
    "plain": StableDiffusionPlainPipeline,
    "masked": StableDiffusionMaskedAttentionPipeline,
    "gligen": StableDiffusionGroundedPipeline,
}


@pytest.fixture(params=PIPELINES)
def method(request):
    return request.param


@pytest.fixture
def make(tiny_diffusion):
    """Loads pipelines by name; the gates of GLIGEN are opened, which start closed."""

    def load(name):
        folder = tiny_diffusion(gated=name == "gligen")
        pipeline = PIPELINES[name].from_pretrained(folder, safety_checker=None)
        for key, parameter in pipeline.unet.named_parameters():
            if "alpha" in key:
                parameter.data.fill_(1.0)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


def draw(pipeline, prompt, instances=None, seeds=(0,), **options):
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 4, "output_type": "np", **options}
    return pipeline(prompt, instances=instances, generator=generator, **options).images


def test_what_the_captions_say_changes_the_picture(make, method):
    pipeline = make(method)
    first = draw(pipeline, "desk", [[CUP, PEN]])
    assert first.shape == (1, 64, 64, 3)
    np.testing.assert_array_equal(draw(pipeline, "desk", [[CUP, PEN]]), first)
    assert np.abs(draw(pipeline, "desk", [[CUP, {**PEN, "caption": "a hat"}]]) - first).max() > 1e-5


def test_where_the_boxes_are_changes_the_picture_unless_it_is_plain(make, method):
    pipeline = make(method)
    moved = [[{**CUP, "bbox": PEN["bbox"]}, {**PEN, "bbox": CUP["bbox"]}]]
    change = np.abs(draw(pipeline, "desk", moved) - draw(pipeline, "desk", [[CUP, PEN]])).max()
    assert (change > 1e-5) == (method != "plain")


@pytest.mark.parametrize("method", [name for name in PIPELINES if name != "gligen"], indirect=True)
def test_without_instances_it_is_stable_diffusion(make, method, tiny_diffusion):
    """But GLIGEN, whose UNet is one of its own."""
    from diffusers import StableDiffusionPipeline

    reference = StableDiffusionPipeline.from_pretrained(tiny_diffusion(), safety_checker=None)
    reference.set_progress_bar_config(disable=True)
    expected = reference(
        "desk",
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=4,
        output_type="np",
    ).images
    for instances in (None, [[]]):
        np.testing.assert_allclose(draw(make(method), "desk", instances), expected, atol=1e-6)


def test_pictures_of_a_batch_are_those_of_their_own(make, method):
    pipeline = make(method)
    both = draw(pipeline, ["desk", "room"], [[CUP, PEN], []], (3, 4), negative_prompt=["", "dark"])
    first = draw(pipeline, "desk", [[CUP, PEN]], (3,), negative_prompt="")
    second = draw(pipeline, ["room"], [[]], (4,), negative_prompt=["dark"])
    np.testing.assert_allclose(both, np.concatenate([first, second]), atol=2e-4)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_several_pictures_of_a_prompt(make, method, guidance):
    options = {"num_images_per_prompt": 2, "guidance_scale": guidance}
    pipeline = make(method)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(
        "desk",
        instances=[[CUP]],
        generator=generator,
        num_inference_steps=2,
        output_type="np",
        **options,
    ).images
    assert images.shape == (2, 64, 64, 3) and np.abs(images[0] - images[1]).max() > 1e-3


def test_gligen_uses_boxes_in_its_share_of_the_steps(make):
    pipeline = make("gligen")
    never = draw(pipeline, "desk", [[CUP]], gligen_scheduled_sampling_beta=0.0)
    np.testing.assert_allclose(never, draw(pipeline, "desk", [[]]), atol=1e-6)
    always = draw(pipeline, "desk", [[CUP]], gligen_scheduled_sampling_beta=1.0)
    assert np.abs(always - never).max() > 1e-5


def test_gligen_takes_captions_that_are_too_long(make):
    pipeline = make("gligen")
    long = {**CUP, "caption": "a very long cup " * 12}
    first = draw(pipeline, "desk", [[long]])
    np.testing.assert_array_equal(
        draw(pipeline, "desk", [[{**long, "caption": long["caption"] * 2}]]), first
    )


def test_the_weight_of_the_prompt_grows(make):
    pipeline = make("masked")
    none = draw(pipeline, "desk", [[]])
    changes = [
        np.abs(draw(pipeline, "desk", [[CUP, PEN]], global_weight=weight) - none).mean()
        for weight in (0.0, 1.0, 100.0)
    ]
    assert changes[0] > changes[1] > 10 * changes[2]


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ([[CUP], []], "instances are 2 lists, and there are 1 prompts"),
        ([[{"bbox": [0, 0, 1, 1]}]], "instance 0 of image 0 must be a dictionary of bbox"),
    ],
)
def test_mistakes_are_named(make, method, instances, message):
    with pytest.raises(ValueError, match=message):
        draw(make(method), "desk", instances)


def test_boxes_are_used_in_a_share_of_the_steps(make):
    pipeline = make("masked")
    never = draw(pipeline, "desk", [[CUP]], roictrl_scheduled_sampling_beta=0.0)
    np.testing.assert_allclose(never, draw(pipeline, "desk"), atol=1e-6)
    always, once = (
        draw(pipeline, "desk", [[CUP]], roictrl_scheduled_sampling_beta=beta) for beta in (1, 0.25)
    )
    assert np.abs(always - never).mean() > np.abs(once - never).mean() > 0


def test_the_negative_prompt_in_boxes_is_the_negative_prompt(make):
    pipeline = make("masked")
    pictures = [
        draw(pipeline, "desk", [[CUP]], negative_prompt="dark", roictrl_unconditional=half)
        for half in ("none", "negative")
    ]
    np.testing.assert_allclose(*pictures, atol=1e-5)
