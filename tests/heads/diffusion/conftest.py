"""A tiny UNet as the sheet of ROICtrl's oracles has it, and inputs for it."""

from types import SimpleNamespace

import pytest
import torch

DIM = 32


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_unet():
    """Makes UNets, all alike, of 792,964 weights and four blocks; keywords change them."""
    from diffusers import UNet2DConditionModel

    def make(**config) -> UNet2DConditionModel:
        torch.manual_seed(0)
        return UNet2DConditionModel(
            **{
                "sample_size": 16,
                "block_out_channels": (32, 64),
                "layers_per_block": 1,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                "cross_attention_dim": DIM,
                "attention_head_dim": 8,
                "norm_num_groups": 8,
                **config,
            }
        ).eval()

    return make


@pytest.fixture
def make_instances():
    """Makes instances from boxes of each image, with random captions."""
    from visattn.heads.diffusion.roictrl import Instances

    def make(*images, dim: int = DIM, seed: int = 0, **kwargs):
        generator = torch.Generator().manual_seed(seed)
        return Instances.from_lists(
            [(b, torch.randn(len(b), 77, dim, generator=generator)) for b in images], **kwargs
        )

    return make


@pytest.fixture
def inputs():
    """Latents, time and captions of two images."""
    generator = torch.Generator().manual_seed(1)
    return SimpleNamespace(
        sample=torch.randn(2, 4, 16, 16, generator=generator),
        timestep=torch.tensor([10, 500]),
        encoder_hidden_states=torch.randn(2, 77, DIM, generator=generator),
    )


@pytest.fixture(scope="session")
def components(tiny_diffusion):
    """Components of the tiny Stable Diffusion, for pictures of 64 x 64."""
    from diffusers import StableDiffusionPipeline

    parts = StableDiffusionPipeline.from_pretrained(tiny_diffusion()).components
    return {name: part for name, part in parts.items() if name != "image_encoder"}
