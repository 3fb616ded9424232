"""Other ways to say what is where, behind the interface of ROICtrl's pipeline, to compare with.

All take ``instances=[[{"bbox": [x1, y1, x2, y2], "caption": str}, ...], ...]``, a list for each
prompt, with boxes normalised to [0, 1].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionGLIGENPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from .masked import masked_attention
from .roictrl import Instances

__all__ = [
    "StableDiffusionGroundedPipeline",
    "StableDiffusionMaskedAttentionPipeline",
    "StableDiffusionPlainPipeline",
    "join_captions",
]

ImageInstances = Sequence[Mapping[str, Any]]


def _per_prompt(
    prompt: str | Sequence[str], instances: Sequence[ImageInstances] | None
) -> tuple[list[str], list[ImageInstances]]:
    """Prompts, and the instances of each.

    Raises:
        ValueError: If there are not as many lists as prompts, or one is not of instances.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    lists = [[] for _ in prompts] if instances is None else list(instances)
    if len(lists) != len(prompts):
        raise ValueError(
            f"instances must be a list for each of {len(prompts)} prompts; got {len(lists)}"
        )
    for number, own in enumerate(lists):
        for entry in own.items() if isinstance(own, Mapping) else own:
            if not isinstance(entry, Mapping) or not {"bbox", "caption"} <= entry.keys():
                raise ValueError(
                    f"instances of prompt {number} must be dictionaries with bbox and caption; "
                    f"got {entry!r}"
                )
    return prompts, lists


def join_captions(prompt: str, instances: ImageInstances) -> str:
    """A prompt that names all instances, and does not say where they are."""
    return ", ".join([prompt, *(entry["caption"] for entry in instances)])


class StableDiffusionPlainPipeline(StableDiffusionPipeline):
    """Stable Diffusion with captions joined to the prompt; boxes are not used."""

    def __call__(
        self,
        prompt: str | list[str],
        *args: Any,
        instances: Sequence[ImageInstances] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``StableDiffusionPipeline``'s.

        Raises:
            ValueError: If the instances are not of the prompts.
        """
        prompts, lists = _per_prompt(prompt, instances)
        joined = [join_captions(*pair) for pair in zip(prompts, lists, strict=True)]
        return super().__call__(joined[0] if isinstance(prompt, str) else joined, *args, **kwargs)


class StableDiffusionMaskedAttentionPipeline(StableDiffusionPipeline):
    """Stable Diffusion with cross-attention to captions that is masked to boxes; untrained."""

    def __call__(
        self,
        prompt: str | list[str],
        *args: Any,
        instances: Sequence[ImageInstances] | None = None,
        global_weight: float = 0.0,
        **kwargs: Any,
    ) -> Any:
        """As ``StableDiffusionPipeline``'s.

        Of classifier-free guidance the unconditional half has no instances: to the negative prompt,
        which all of them would have, it attends anyway.

        Args:
            prompt: Prompt or prompts.
            *args: See ``StableDiffusionPipeline``.
            instances: Boxes and captions of each prompt.
            global_weight: Weight of the prompt in boxes, beside the instances' 1.
            **kwargs: See ``StableDiffusionPipeline``.

        Raises:
            ValueError: If the instances are not of the prompts.
        """
        _, lists = _per_prompt(prompt, instances)
        batch = self._encode_instances(lists, kwargs.get("clip_skip"))
        batch = batch.repeat(kwargs.get("num_images_per_prompt") or 1)
        guidance_scale = args[5] if len(args) > 5 else kwargs.get("guidance_scale", 7.5)
        if guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None:
            batch = batch.with_unconditional(None)
        with masked_attention(self.unet, batch, global_weight):
            return super().__call__(prompt, *args, **kwargs)

    def _encode_instances(
        self, lists: Sequence[ImageInstances], clip_skip: int | None
    ) -> Instances:
        images = []
        for own in lists:
            text = torch.zeros(0, 1, self.unet.config.cross_attention_dim)
            if own:
                captions = [entry["caption"] for entry in own]
                text, _ = self.encode_prompt(
                    captions, self._execution_device, 1, False, clip_skip=clip_skip
                )
            images.append(([list(entry["bbox"]) for entry in own], text))
        most = max((len(own) for own in lists), default=0)
        return Instances.from_lists(images, max(most, 1), self.unet.config.cross_attention_dim)


class StableDiffusionGroundedPipeline(StableDiffusionGLIGENPipeline):
    """GLIGEN (arXiv 2301.07093), as diffusers has it; its weights are of a UNet of its own."""

    def __call__(
        self,
        prompt: str | list[str],
        *args: Any,
        instances: Sequence[ImageInstances] | None = None,
        gligen_scheduled_sampling_beta: float = 0.3,
        generator: torch.Generator | list[torch.Generator] | None = None,
        negative_prompt: str | list[str] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """As ``StableDiffusionGLIGENPipeline``'s, which takes one prompt at a time.

        Args:
            prompt: Prompt or prompts.
            *args: See ``StableDiffusionGLIGENPipeline``.
            instances: Boxes and captions of each prompt, at most 30.
            gligen_scheduled_sampling_beta: Share of the steps in which boxes are used.
            generator: One, or one for each prompt.
            negative_prompt: One, or one for each prompt.
            return_dict: Whether an output object is returned, or a tuple.
            **kwargs: See ``StableDiffusionGLIGENPipeline``.

        Raises:
            ValueError: If the instances are not of the prompts, or there are over 30 of one.
        """
        prompts, lists = _per_prompt(prompt, instances)
        outputs = []
        for number, (text, own) in enumerate(zip(prompts, lists, strict=True)):
            if len(own) > 30:
                raise ValueError(f"GLIGEN takes 30 instances; prompt {number} has {len(own)}")
            outputs.append(
                super().__call__(
                    text,
                    *args,
                    gligen_phrases=[entry["caption"] for entry in own] or [""],
                    gligen_boxes=[list(entry["bbox"]) for entry in own] or [[0.0] * 4],
                    gligen_scheduled_sampling_beta=gligen_scheduled_sampling_beta if own else 0.0,
                    generator=_of(generator, number),
                    negative_prompt=_of(negative_prompt, number),
                    **kwargs,
                )
            )
        images = [output.images for output in outputs]
        whole = sum(images, []) if isinstance(images[0], list) else _joined(images)
        flags = [output.nsfw_content_detected for output in outputs]
        unsafe = None if None in flags else sum(flags, [])
        if not return_dict:
            return whole, unsafe
        return StableDiffusionPipelineOutput(images=whole, nsfw_content_detected=unsafe)


def _of(value: Any, number: int) -> Any:
    return value[number] if isinstance(value, (list, tuple)) else value


def _joined(images: list[Any]) -> Any:
    if isinstance(images[0], torch.Tensor):
        return torch.cat(images)
    import numpy as np

    return np.concatenate(images)
