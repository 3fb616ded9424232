"""Other ways to say what is where, behind the interface of ROICtrl's pipeline, to compare with.

All take ``instances=[[{"bbox": [x1, y1, x2, y2], "caption": str}, ...], ...]``, a list for each
prompt, with boxes normalised to [0, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import StableDiffusionGLIGENPipeline, StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from .masked import masked_attention
from .pipeline import InstanceMixin
from .roictrl import Instances

__all__ = [
    "StableDiffusionGroundedPipeline",
    "StableDiffusionMaskedAttentionPipeline",
    "StableDiffusionPlainPipeline",
    "join_captions",
]

ImageInstances = Sequence[Mapping[str, Any]]


def join_captions(prompt: str, instances: ImageInstances) -> str:
    """A prompt that names all instances, and does not say where they are."""
    return ", ".join([prompt, *(entry["caption"] for entry in instances)])


class _ListsMixin:
    """Checks instances as ``InstanceMixin`` does, without encoding captions."""

    max_instances = InstanceMixin.max_instances
    _checked = InstanceMixin._checked

    def _lists(
        self, prompt: str | list[str], instances: Sequence[ImageInstances] | None
    ) -> list[tuple[str, ImageInstances]]:
        """Prompts, and the instances of each.

        Raises:
            ValueError: If there are not as many lists as prompts, or one is not of instances.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        lists = [[] for _ in prompts] if instances is None else self._checked(instances)
        if len(lists) != len(prompts):
            raise ValueError(
                f"instances are {len(lists)} lists, and there are {len(prompts)} prompts: give one "
                "list of boxes and captions for each prompt, [] for none"
            )
        return list(zip(prompts, lists, strict=True))


class StableDiffusionPlainPipeline(_ListsMixin, StableDiffusionPipeline):
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
        joined = [join_captions(*pair) for pair in self._lists(prompt, instances)]
        return super().__call__(joined[0] if isinstance(prompt, str) else joined, *args, **kwargs)


class StableDiffusionMaskedAttentionPipeline(InstanceMixin, StableDiffusionPipeline):
    """Stable Diffusion with cross-attention to captions that is masked to boxes; untrained."""

    _global_weight = 0.0

    def __call__(
        self,
        *args: Any,
        global_weight: float = 0.0,
        roictrl_unconditional: str = "none",
        **kwargs: Any,
    ) -> Any:
        """See ``InstanceMixin``.

        Args:
            *args: As the pipeline's.
            global_weight: Weight of the prompt in boxes, beside the instances' 1.
            roictrl_unconditional: ``"negative"`` costs more, and gives the same: to the negative
                prompt the unconditional half attends anyway.
            **kwargs: As the pipeline's, and ``InstanceMixin``'s.
        """
        self._global_weight = global_weight
        return super().__call__(*args, roictrl_unconditional=roictrl_unconditional, **kwargs)

    def control(
        self, instances: Instances, when: Callable[[], bool]
    ) -> AbstractContextManager[Any]:
        """See ``InstanceMixin``."""
        return masked_attention(self.unet, instances, self._global_weight, when)


class StableDiffusionGroundedPipeline(_ListsMixin, StableDiffusionGLIGENPipeline):
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
            instances: Boxes and captions of each prompt, at most 30 of each have an effect.
            gligen_scheduled_sampling_beta: Share of the steps in which boxes are used.
            generator: One, or one for each prompt.
            negative_prompt: One, or one for each prompt.
            return_dict: Whether an output object is returned, or a tuple.
            **kwargs: See ``StableDiffusionGLIGENPipeline``.

        Raises:
            ValueError: If the instances are not of the prompts.
        """
        outputs = []
        for number, (text, own) in enumerate(self._lists(prompt, instances)):
            outputs.append(
                super().__call__(
                    text,
                    *args,
                    gligen_phrases=[self._shortened(entry["caption"]) for entry in own] or [""],
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

    def _shortened(self, caption: str) -> str:
        """A caption without what its encoder has no room for, which the pipeline leaves in."""
        tokens = self.tokenizer(caption).input_ids
        if len(tokens) <= self.tokenizer.model_max_length:
            return caption
        room = self.tokenizer.model_max_length - 2
        return self.tokenizer.decode(tokens[1 : 1 + room], skip_special_tokens=True)


def _of(value: Any, number: int) -> Any:
    return value[number] if isinstance(value, (list, tuple)) else value


def _joined(images: list[Any]) -> Any:
    if isinstance(images[0], torch.Tensor):
        return torch.cat(images)
    import numpy as np

    return np.concatenate(images)
