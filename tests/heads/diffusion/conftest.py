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
def components(make_unet):
    """Components of a tiny Stable Diffusion, of 128 pixels; captions are spelt by letters."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return {
        "unet": make_unet(),
        "vae": vae.eval(),
        "text_encoder": CLIPTextModel(config).eval(),
        "tokenizer": CLIPTokenizer(
            vocab={token: i for i, token in enumerate(tokens)}, model_max_length=77
        ),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
