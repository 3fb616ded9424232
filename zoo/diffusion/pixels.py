"""A stand-in for an autoencoder, with which diffusion works on pixels."""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn

__all__ = ["PatchAutoencoder"]

_LOG_VARIANCE = -30.0


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Patches of pixels as latents: loses nothing, learns nothing, and saves steps of a UNet.

    It has the interface of diffusers' ``AutoencoderKL`` as far as pipelines use it. The map is a
    weight, which is ``pixel_unshuffle`` as it is made.

    Args:
        factor: Side of a patch, a power of two; 1 leaves pixels as they are.
        channels: Of images.
        scaling_factor: Latents are multiplied by it.
        force_upcast: For pipelines; there is nothing to cast.
        block_out_channels: For pipelines, which count halvings by it; follows from ``factor``.
        latent_channels: For pipelines; follows, too.

    Raises:
        ValueError: If ``factor`` is no power of two.
    """

    @register_to_config
    def __init__(
        self,
        factor: int = 2,
        channels: int = 3,
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
        block_out_channels: list[int] | None = None,
        latent_channels: int | None = None,
    ):
        super().__init__()
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"factor must be a power of two; got {factor}")
        latents = channels * factor**2
        self.register_to_config(
            block_out_channels=[latents] * factor.bit_length(), latent_channels=latents
        )
        patches = torch.eye(latents).view(latents, channels, factor, factor)
        self.weight = nn.Parameter(patches)

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Latents (B, channels * factor², H / factor, W / factor) of images, without noise."""
        mean = F.conv2d(x, self.weight, stride=self.config.factor)
        moments = torch.cat((mean, torch.full_like(mean, _LOG_VARIANCE)), 1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Images of latents."""
        image = F.conv_transpose2d(z, self.weight, stride=self.config.factor)
        return DecoderOutput(sample=image) if return_dict else (image,)
