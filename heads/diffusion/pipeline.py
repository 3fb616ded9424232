"""Pipelines of diffusers that take instances: boxes with captions (ROICtrl, arXiv 2411.17949).

pipe = StableDiffusionROICtrlPipeline.from_pretrained(path_of_any_stable_diffusion_1_or_2)
pipe.load_roictrl("roictrl.safetensors")
scene = [{"bbox": [0.1, 0.4, 0.5, 0.9], "caption": "a grey cat"}]
image = pipe("a sunny room", instances=[scene]).images[0]
"""

import inspect
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from .roictrl import (
    Instances,
    controlled,
    is_applied,
    load_roictrl,
    roictrl_state_dict,
    save_roictrl,
)
from .roictrl.attach import attachment

__all__ = [
    "InstanceMixin",
    "ROICtrlMixin",
    "StableDiffusionAdapterROICtrlPipeline",
    "StableDiffusionControlNetImg2ImgROICtrlPipeline",
    "StableDiffusionControlNetInpaintROICtrlPipeline",
    "StableDiffusionControlNetROICtrlPipeline",
    "StableDiffusionImg2ImgROICtrlPipeline",
    "StableDiffusionInpaintROICtrlPipeline",
    "StableDiffusionROICtrlPipeline",
    "StableDiffusionXLROICtrlPipeline",
    "UNCONDITIONAL",
]

Instance = Mapping[str, Any]

UNCONDITIONAL = ("negative", "none")
"""What the unconditional half of guidance has in boxes: the negative prompt, or no instances."""

WEIGHTS = "roictrl.safetensors"
"""The file of ROICtrl beside the components of a saved pipeline."""


class _Request(NamedTuple):
    """What a call asks for, until prompts are encoded."""

    instances: list[list[Instance]]
    beta: float
    unconditional: str
    stack: ExitStack


class InstanceMixin:
    """Gives a pipeline of Stable Diffusion the keyword ``instances``.

    It stands before the pipeline among the bases of a class, which says by ``control`` what
    instances do. Captions are encoded as prompts are, with textual inversion, LoRA and
    ``clip_skip``.
    """

    max_instances = 30
    _request: _Request | None = None

    def __call__(
        self,
        *args: Any,
        instances: Sequence[Sequence[Instance]] | Sequence[Instance] | None = None,
        roictrl_scheduled_sampling_beta: float = 1.0,
        roictrl_unconditional: str = "negative",
        **kwargs: Any,
    ) -> Any:
        """Generates images as the pipeline does, with instances where they are given.

        Args:
            args: As the pipeline's.
            instances: For each prompt a list of ``{"bbox": [x1, y1, x2, y2], "caption": text}``
                with corners normalised to [0, 1]; for a single prompt also the list alone. In place
                of ``caption`` there may be ``caption_embeds``, (L, D). None is the pipeline as it
                is.
            roictrl_scheduled_sampling_beta: Share of the steps, the first of them, in which
                instances have an effect.
            roictrl_unconditional: Of ``UNCONDITIONAL``.
            kwargs: As the pipeline's.

        Returns:
            What the pipeline returns.

        Raises:
            ValueError: If instances are not such lists, or as many as prompts.
        """
        if instances is None:
            return super().__call__(*args, **kwargs)
        if roictrl_unconditional not in UNCONDITIONAL:
            raise ValueError(
                f"roictrl_unconditional must be one of {', '.join(UNCONDITIONAL)}; got "
                f"{roictrl_unconditional!r}"
            )
        if not 0 <= roictrl_scheduled_sampling_beta <= 1:
            raise ValueError(
                "roictrl_scheduled_sampling_beta is a share of the steps, within [0, 1]; got "
                f"{roictrl_scheduled_sampling_beta}"
            )
        with ExitStack() as stack:
            checked = self._checked(instances)
            self._request = _Request(
                checked, roictrl_scheduled_sampling_beta, roictrl_unconditional, stack
            )
            try:
                return super().__call__(*args, **kwargs)
            finally:
                self._request = None

    def control(
        self, instances: Instances, when: Callable[[], bool]
    ) -> AbstractContextManager[Any]:
        """A context in which the UNet heeds instances.

        Args:
            instances: Of the UNet's batches: both halves of guidance, all images of prompts.
            when: Asked once at each call of the UNet whether it is to.
        """
        raise NotImplementedError

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """Encodes prompts as the pipeline does, and in a call with instances their captions."""
        request, self._request = self._request, None
        encode = super().encode_prompt
        outputs = encode(*args, **kwargs)
        if request is None:
            return outputs
        given = inspect.signature(encode).bind(*args, **kwargs)
        given.apply_defaults()
        given = given.arguments
        embeds, negative = outputs[:2]
        images = given["num_images_per_prompt"]
        prompts = len(embeds) // images
        if len(request.instances) != prompts:
            raise ValueError(
                f"instances are {len(request.instances)} lists, and there are {prompts} prompts: "
                "give one list of boxes and captions for each prompt, [] for none"
            )
        how = {name: given[name] for name in ("lora_scale", "clip_skip")}
        instances = self.encode_instances(request.instances, embeds.device, **how)
        instances = instances.to(dtype=embeds.dtype).repeat(images)
        if given["do_classifier_free_guidance"]:
            text = negative if request.unconditional == "negative" else None
            if text is not None and text.shape[1:] != instances.text.shape[1:]:
                raise ValueError(
                    f"negative prompts are {tuple(text.shape[1:])} and captions "
                    f"{tuple(instances.text.shape[1:])}: give caption_embeds of that length, or "
                    "roictrl_unconditional='none'"
                )
            instances = instances.with_unconditional(text)
        calls = itertools.count()

        def when() -> bool:
            steps = getattr(self, "_num_timesteps", None) or len(self.scheduler.timesteps)
            return next(calls) < int(request.beta * steps)

        request.stack.enter_context(self.control(instances, when))
        return outputs

    def encode_instances(
        self, instances: Sequence[Sequence[Instance]], device: torch.device, **kwargs: Any
    ) -> Instances:
        """Encodes captions, each for itself, by the pipeline's tokenizer and text encoder.

        Args:
            instances: As ``__call__`` takes them.
            device: Where captions are encoded.
            kwargs: Of ``encode_prompt``: ``lora_scale``, ``clip_skip``.

        Raises:
            ValueError: If encoded captions differ in shape, or a box is not one.
        """
        flat = [instance for image in instances for instance in image]
        captions = [str(i["caption"]) for i in flat if "caption_embeds" not in i]
        encoded: Any = ()
        if captions:
            encoded = super().encode_prompt(
                captions,
                device=device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
                **kwargs,
            )[0]
        encoded = iter(encoded)
        embeds = [
            torch.as_tensor(i["caption_embeds"]).to(device) if "caption_embeds" in i
            else next(encoded)
            for i in flat
        ]  # fmt: skip
        if len({tuple(e.shape) for e in embeds}) > 1:
            raise ValueError(
                f"captions differ in shape once encoded: {sorted({tuple(e.shape) for e in embeds})}"
            )
        dim, length = self.unet.config.cross_attention_dim, self.tokenizer.model_max_length
        text = torch.stack(embeds) if embeds else torch.zeros(0, length, dim, device=device)
        parts, start = [], 0
        for image in instances:
            boxes = [list(map(float, instance["bbox"])) for instance in image]
            parts.append((boxes, text[start : start + len(boxes)]))
            start += len(boxes)
        return Instances.from_lists(parts, self.max_instances)

    def _checked(
        self, instances: Sequence[Sequence[Instance]] | Sequence[Instance]
    ) -> list[list[Instance]]:
        """Lists for each prompt, without what there is no slot for."""
        if instances and all(isinstance(instance, Mapping) for instance in instances):
            instances = [instances]
        lists = [list(image) for image in instances]
        for i, image in enumerate(lists):
            for j, instance in enumerate(image):
                named = isinstance(instance, Mapping) and "bbox" in instance
                if not (named and {"caption", "caption_embeds"} & instance.keys()):
                    raise ValueError(
                        f"instance {j} of image {i} must be a dictionary of bbox and caption; got "
                        f"{instance!r}"
                    )
                if len(instance["bbox"]) != 4:
                    raise ValueError(
                        f"bbox of instance {j} of image {i} must be [x1, y1, x2, y2]; got "
                        f"{instance['bbox']!r}"
                    )
            if len(image) > self.max_instances:
                warnings.warn(
                    f"image {i} has {len(image)} instances: only the first {self.max_instances} of "
                    "them have an effect",
                    stacklevel=3,
                )
        return [image[: self.max_instances] for image in lists]


class ROICtrlMixin(InstanceMixin):
    """ROICtrl in a pipeline of Stable Diffusion: ``instances`` and files of weights.

    Without instances in a call the pipeline is the one it is made of, to the bit.
    """

    @property
    def max_instances(self) -> int:
        """Slots of an image."""
        return attachment(self.unet).max_instances

    def control(
        self, instances: Instances, when: Callable[[], bool]
    ) -> AbstractContextManager[Any]:
        """See ``InstanceMixin``."""
        return controlled(self.unet, instances, when)

    def load_roictrl(
        self, source: str | Path | Mapping[str, torch.Tensor], **settings: Any
    ) -> "ROICtrlMixin":
        """Loads weights of ROICtrl into the UNet; see ``roictrl.load_roictrl``."""
        load_roictrl(self.unet, source, **settings)
        return self

    def save_roictrl(self, path: str | Path) -> None:
        """Writes the weights of ROICtrl alone; see ``roictrl.save_roictrl``."""
        save_roictrl(self.unet, path)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the pipeline as diffusers does, with ROICtrl in a file of its own.

        The UNet in it is without ROICtrl: other pipelines load the components, too.
        """
        if not is_applied(self.unet):
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        own = roictrl_state_dict(self.unet).keys()

        def leave_out(module: Any, state: dict[str, torch.Tensor], prefix: str, _: Any) -> None:
            for name in own:
                state.pop(prefix + name, None)

        handle = self.unet.register_state_dict_post_hook(leave_out)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            handle.remove()
        save_roictrl(self.unet, Path(save_directory) / WEIGHTS)

    @classmethod
    def from_pretrained(cls, path: str | Path, **kwargs: Any) -> "ROICtrlMixin":
        """Loads a pipeline as diffusers does, and ROICtrl where ``save_pretrained`` left it."""
        pipeline = super().from_pretrained(path, **kwargs)
        weights = Path(path) / WEIGHTS
        return pipeline.load_roictrl(weights) if weights.is_file() else pipeline


class StableDiffusionROICtrlPipeline(ROICtrlMixin, StableDiffusionPipeline):
    """Text to image with instances."""


class StableDiffusionImg2ImgROICtrlPipeline(ROICtrlMixin, StableDiffusionImg2ImgPipeline):
    """Image to image with instances."""


class StableDiffusionInpaintROICtrlPipeline(ROICtrlMixin, StableDiffusionInpaintPipeline):
    """Inpainting with instances."""


class StableDiffusionControlNetROICtrlPipeline(ROICtrlMixin, StableDiffusionControlNetPipeline):
    """Text to image with ControlNet and instances."""


class StableDiffusionControlNetImg2ImgROICtrlPipeline(
    ROICtrlMixin, StableDiffusionControlNetImg2ImgPipeline
):
    """Image to image with ControlNet and instances."""


class StableDiffusionControlNetInpaintROICtrlPipeline(
    ROICtrlMixin, StableDiffusionControlNetInpaintPipeline
):
    """Inpainting with ControlNet and instances."""


class StableDiffusionAdapterROICtrlPipeline(ROICtrlMixin, StableDiffusionAdapterPipeline):
    """Text to image with T2I-Adapter and instances."""


class StableDiffusionXLROICtrlPipeline(ROICtrlMixin, StableDiffusionXLPipeline):
    """Text to image with instances, of Stable Diffusion XL; no weights were released for it."""
