"""Small Vision Transformers."""

import pytest
import timm
import torch

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
POOLS = {"pool_size": 6, "topk": 2, "length": 2}


@pytest.fixture
def small_vit():
    """Creates a ViT of 16 tokens of 48 channels in 3 blocks; takes keywords of timm's."""

    def create(name: str = "vit_tiny_patch16_224", **kwargs):
        model = timm.create_model(name, **{**SMALL, "num_classes": 5, **kwargs})
        # So that nothing is zero, as biases are at first, or hidden by it.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return create


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)
