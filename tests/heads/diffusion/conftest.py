"""A UNet small enough for tests."""

import pytest
import torch


@pytest.fixture
def unet():
    """A UNet of two resolutions with random weights, whose text has 32 channels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).eval()


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
