"""Training diffusion models of diffusers, whole or ROICtrl on a frozen one, with mmengine."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import MODELS
from torch import nn

from ..checkpoint import StateDict
from ..errors import ConfigError
from ..training.prompting import TrainedOnlyHook, complete_checkpoint, complete_state_dict
from .cache import TextCache
from .hooks import GatesHook
from .text import encode, make_text_encoder, make_tokenizer

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from ...heads.diffusion.roictrl import Instances

__all__ = ["LatentDiffusion", "loss_weights"]

logger = logging.getLogger(__name__)


@MODELS.register_module()
class LatentDiffusion(BaseModel):
    """A text-to-image pipeline of diffusers whose UNet, or ROICtrl in it, is trained.

    Without ``roictrl`` the UNet is trained and, where it is made here, the text encoder. With it
    all but ROICtrl is frozen, and checkpoints hold nothing else but a digest of the frozen.

    The loss is the scheduler's own: of the noise, of v, or of the image, as its
    ``prediction_type`` says; with ROICtrl, its regularisation is added.

    Args:
        pretrained: Folder of a pipeline, or its name on the Hugging Face hub.
        unet: Or, to start from nothing, configuration of a ``UNet2DConditionModel``;
        vae: of a ``PatchAutoencoder``;
        text: of ``make_text_encoder``, with ``words`` and ``max_length`` of ``make_tokenizer``;
        scheduler: and of a ``DDIMScheduler``.
        roictrl: Keywords of ``visattn.heads.diffusion.roictrl.apply``; None for none.
        regularisation: Weight of ROICtrl's regularisation.
        snr_gamma: Losses of steps are weighed by min-SNR with this gamma (5 is usual); None for
            equal weights.
        grad_checkpointing: Whether to recompute activations in the backward pass.
        sampling: Keywords of pipelines when images are drawn: ``num_inference_steps``,
            ``guidance_scale`` and so on.

    Raises:
        ConfigError: If there are both or neither of a pipeline and what one is made of, or it
            cannot be loaded or take ROICtrl.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        unet: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        roictrl: Mapping[str, Any] | None = None,
        regularisation: float = 0.01,
        snr_gamma: float | None = None,
        grad_checkpointing: bool = False,
        sampling: Mapping[str, Any] | None = None,
    ):
        super().__init__(BaseDataPreprocessor())
        made_here = [part is not None for part in (unet, vae, text, scheduler)]
        if any(made_here) if pretrained else not all(made_here):
            raise ConfigError(
                "model needs pretrained, or all of unet, vae, text and scheduler in its place"
            )
        pipeline = load(pretrained) if pretrained else make(unet, vae, text, scheduler)
        from diffusers import DDPMScheduler

        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.text_encoder, self.tokenizer = pipeline.text_encoder, pipeline.tokenizer
        self.scheduler = pipeline.scheduler
        self.noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self.vae.requires_grad_(False)
        self.trains_text = not pretrained and roictrl is None
        self.text_encoder.requires_grad_(self.trains_text)
        self.has_roictrl = roictrl is not None
        if roictrl is not None:
            from ...heads.diffusion import roictrl as control

            try:
                control.apply(self.unet, **roictrl)
            except (ValueError, TypeError) as error:
                raise ConfigError(f"model.roictrl: {error}") from error
        if grad_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.regularisation, self.snr_gamma = regularisation, snr_gamma
        self.sampling = dict(sampling or {})
        self.cached_text: TextCache | None = None

    @property
    def backbone(self) -> nn.Module:
        """The UNet, which the runner compiles."""
        return self.unet

    def init_weights(self) -> None:
        """Does nothing: all is initialised, or loaded, when it is built."""

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """Sets the mode of what is trained; what is frozen stays in eval mode."""
        super().train(mode)
        self.vae.eval()
        self.text_encoder.train(mode and self.trains_text)
        return self

    def training_hooks(self) -> list[Hook]:
        """Hooks that training this model needs."""
        return [TrainedOnlyHook(), GatesHook()] if self.has_roictrl else []

    @staticmethod
    def convert_state_dict(model: "LatentDiffusion", state_dict: StateDict) -> StateDict:
        """A state dict with what is frozen, of one that may be without."""
        return complete_state_dict(model, state_dict)

    def complete_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts what is frozen into a checkpoint of a run that may be without, in place."""
        complete_checkpoint(self, checkpoint)

    def pipeline(self) -> "StableDiffusionPipeline":
        """The pipeline of diffusers, with the weights as they are."""
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        """Last hidden states (N, L, D) of captions, with gradients if the encoder is trained."""
        if not captions:
            width = self.text_encoder.config.hidden_size
            length = self.tokenizer.model_max_length
            return torch.zeros(0, length, width, device=self.text_encoder.device)
        if self.cached_text is not None and all(text in self.cached_text for text in captions):
            return self.cached_text(captions).to(self.text_encoder.device)
        with nullcontext() if self.trains_text else torch.no_grad():
            return encode(self.tokenizer, self.text_encoder, captions)

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Moments (B, 2 * channels, h, w) of the latents of images of bytes (B, 3, H, W)."""
        pixels = images.to(self.vae.dtype) / 127.5 - 1
        return self.vae.encode(pixels).latent_dist.parameters

    def sample_latents(self, moments: torch.Tensor) -> torch.Tensor:
        """Scaled latents (B, channels, h, w) drawn from their moments."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        drawn = DiagonalGaussianDistribution(moments.float()).sample()
        return drawn * self.vae.config.scaling_factor

    def instances(self, boxes: Sequence[torch.Tensor], text: Sequence[torch.Tensor]) -> "Instances":
        """Instances of a batch.

        Args:
            boxes: Of each image, normalised, (n, 4).
            text: Encoded captions of them, (n, L, D).
        """
        from ...heads.diffusion.roictrl import Instances

        slots = self.unet.roictrl.max_instances
        return Instances.from_lists(list(zip(boxes, text, strict=True)), slots)

    def forward(
        self,
        caption: Sequence[str],
        image: torch.Tensor | None = None,
        boxes: Sequence[torch.Tensor] = (),
        captions: Sequence[Sequence[str]] = (),
        latents: torch.Tensor | None = None,
        path: Sequence[str] = (),
        mode: str = "loss",
    ) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """The loss of a batch, or pictures drawn for it.

        Args:
            caption: Of each image.
            image: Bytes (B, 3, H, W); not needed if there are ``latents``.
            boxes: Of each image, normalised, (n, 4).
            captions: Of these.
            latents: Moments from a cache, (B, 2 * channels, h, w).
            path: Image files; the noise that a picture is drawn from depends on their names alone.
            mode: ``"loss"`` or ``"predict"``.
        """
        if mode == "predict":
            seeds = [zlib.crc32(Path(name).name.encode()) for name in path]
            drawn = self.draw(caption, boxes, captions, seeds, tuple(image.shape[-2:]))
            return [
                {"drawn": x, "boxes": b.cpu(), "captions": c, "caption": t, "path": p, "image": i}
                for x, b, c, t, p, i in zip(
                    drawn, boxes, captions, caption, path, image, strict=True
                )
            ]
        if mode != "loss":
            raise ValueError(f"mode must be loss or predict; got {mode!r}")
        clean = self.sample_latents(self.encode_images(image) if latents is None else latents)
        counts = [len(own) for own in captions] if self.has_roictrl else []
        inner = [text for own in captions for text in own] if self.has_roictrl else []
        states = self.encode_text([*caption, *inner])
        whole, *own = states.split([len(caption), *counts])
        kwargs = {}
        if self.has_roictrl:
            kwargs["cross_attention_kwargs"] = {"roictrl": self.instances(boxes, own)}
        scheduler = self.noise_scheduler
        noise = torch.randn_like(clean)
        steps = scheduler.config.num_train_timesteps
        step = torch.randint(steps, (len(clean),), device=clean.device)
        noisy = scheduler.add_noise(clean, noise, step)
        output = self.unet(noisy, step, whole, **kwargs).sample
        errors = F.mse_loss(output.float(), self.target(clean, noise, step), reduction="none")
        errors = errors.flatten(1).mean(1)
        if self.snr_gamma is not None:
            kind = scheduler.config.prediction_type
            snr = self.signal_to_noise(step)
            errors = errors * loss_weights(snr, kind, self.snr_gamma)
        losses = {"loss_diffusion": errors.mean()}
        if self.has_roictrl:
            from ...heads.diffusion.roictrl import regularisation_loss

            penalty = regularisation_loss(self.unet)
            losses["loss_regularisation"] = self.regularisation * penalty
        return losses

    def target(self, clean: torch.Tensor, noise: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """What the UNet is to predict, as the scheduler's ``prediction_type`` says.

        Raises:
            ConfigError: If it is of another type than epsilon, v_prediction or sample.
        """
        kind = self.noise_scheduler.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self.noise_scheduler.get_velocity(clean, noise, step)
        if kind == "sample":
            return clean
        raise ConfigError(f"the scheduler's prediction_type {kind!r} cannot be trained")

    def signal_to_noise(self, step: torch.Tensor) -> torch.Tensor:
        """Ratio of the powers of signal and noise at steps (B,)."""
        kept = self.noise_scheduler.alphas_cumprod.to(step.device)[step]
        return kept / (1 - kept)

    @torch.no_grad()
    def draw(
        self,
        caption: Sequence[str],
        boxes: Sequence[torch.Tensor] = (),
        captions: Sequence[Sequence[str]] = (),
        seeds: Sequence[int] = (),
        size: tuple[int, int] | None = None,
        **sampling: Any,
    ) -> torch.Tensor:
        """Pictures (B, 3, H, W) of bytes for captions and, with ROICtrl, captions of boxes.

        Args:
            caption: Of each picture.
            boxes: Of each, normalised, (n, 4).
            captions: Of these.
            seeds: Of the noise of each.
            size: Height and width; the model's own by default.
            **sampling: Keywords of the pipeline, over those of the model.
        """
        pipeline = self.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        empty = self.encode_text([""])
        negative = empty.expand(len(caption), -1, -1)
        settings = {**self.sampling, **sampling}
        if size is not None:
            settings["height"], settings["width"] = size
        context = nullcontext()
        if self.has_roictrl and boxes:
            from ...heads.diffusion.roictrl import controlled

            instances = self.instances(boxes, [self.encode_text(own) for own in captions])
            if settings.get("guidance_scale", 7.5) > 1:
                instances = instances.with_unconditional(negative)
            context = controlled(self.unet, instances)
        with context:
            pictures = pipeline(
                prompt_embeds=self.encode_text(caption),
                negative_prompt_embeds=negative,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds] or None,
                output_type="pt",
                **settings,
            ).images
        return (pictures.float() * 255).round().clamp(0, 255).byte().cpu()


def loss_weights(snr: torch.Tensor, kind: str, gamma: float) -> torch.Tensor:
    """Weights of losses at steps, by min-SNR (arXiv 2303.09556).

    Args:
        snr: Ratios of signal to noise (B,).
        kind: What is predicted: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``.
        gamma: Ratio above which all steps weigh the same.
    """
    clipped = snr.clamp(max=gamma)
    return {
        "epsilon": lambda: clipped / snr.clamp(min=1e-8),
        "v_prediction": lambda: clipped / (snr + 1),
        "sample": lambda: clipped,
    }[kind]()


def load(path: str) -> "StableDiffusionPipeline":
    """Loads a pipeline without its safety checker.

    Raises:
        ConfigError: If it cannot be loaded.
    """
    from diffusers import StableDiffusionPipeline

    # diffusers imports no module because a folder names it.
    from . import pixels  # noqa: F401

    is_name = path.count("/") == 1 and not path.startswith((".", "/"))
    if not Path(path).is_dir() and not is_name:
        raise ConfigError(
            f"model.pretrained: there is no folder {path}; if a recipe makes it, train "
            "that first, or set model.pretrained to a folder of a pipeline"
        )
    try:
        return StableDiffusionPipeline.from_pretrained(
            path, safety_checker=None, requires_safety_checker=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.pretrained: cannot load {path}: {error}") from error


def make(
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    text: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> "StableDiffusionPipeline":
    """Makes a pipeline with random weights; see ``LatentDiffusion``.

    Raises:
        ConfigError: If a part cannot be made of its configuration.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from .pixels import PatchAutoencoder

    try:
        settings = dict(text)
        tokenizer = make_tokenizer(settings.pop("words"), settings.pop("max_length"))
        encoder = make_text_encoder(tokenizer, **settings)
        return StableDiffusionPipeline(
            vae=PatchAutoencoder(**vae),
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                **{"cross_attention_dim": encoder.config.hidden_size, **unet}
            ),
            scheduler=DDIMScheduler(**scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"model.unet, vae, text or scheduler: {error}") from error
