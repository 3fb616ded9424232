"""Masked-attention instance control: what regions are compared with.

Every instance has the cross-attention of the whole map to its own caption, and of it what is inside
its box (the comparison of ROICtrl, arXiv 2411.17949, section 4.3; without its trained fuser). Time
and memory grow with the map and the number of instances, whatever the sizes of the boxes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .roictrl import Instances, is_applied
from .roictrl.attach import blocks

__all__ = ["box_masks", "masked_attention"]


def box_masks(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Which tokens of a map are in boxes: those with their centres there, one at least.

    Args:
        boxes: Corners x1, y1, x2, y2 normalised to [0, 1], (V, 4).
        size: Height and width of the map.

    Returns:
        (V, height * width), bool.
    """
    sides = []
    for length, low, high in ((size[0], 1, 3), (size[1], 0, 2)):
        centres = (torch.arange(length, device=boxes.device) + 0.5) / length
        begin, end = boxes[:, low, None], boxes[:, high, None]
        inside = (begin <= centres) & (centres < end)  # (V, length)
        nearest = (((begin + end) / 2 * length).long()).clamp(max=length - 1)
        inside.scatter_(1, nearest, True)
        sides.append(inside)
    return (sides[0][:, :, None] & sides[1][:, None]).flatten(1)


@contextmanager
def masked_attention(
    unet: nn.Module,
    instances: Instances | None,
    global_weight: float = 0.0,
    when: Callable[[], bool] | None = None,
) -> Iterator[nn.Module]:
    """Has a UNet attend from the boxes of instances to their captions, in a block of code.

    The output of cross-attention becomes a mean, at each token, over the instances whose boxes it
    is in, and the prompt with a weight of its own; outside of all boxes it stays.

    Args:
        unet: A ``UNet2DConditionModel`` without ROICtrl.
        instances: Of the images of its batches; None for none.
        global_weight: Weight of the prompt beside the instances' 1.
        when: Asked at each call of the UNet whether it gets them.

    Yields:
        The UNet; leaving removes all that was attached.

    Raises:
        ValueError: If ROICtrl is in the UNet, it has no cross-attention, or the weight is negative.
    """
    if global_weight < 0:
        raise ValueError(f"global_weight must not be negative; got {global_weight}")
    if is_applied(unet):
        raise ValueError("ROICtrl is in this UNet: remove(unet) it before masked attention")
    found = list(blocks(unet))
    if not found:
        raise ValueError(f"there is no cross-attention in this {type(unet).__name__}")
    call = _Call(instances, global_weight, when)
    hooks = [unet.register_forward_pre_hook(call.begin, with_kwargs=True)]
    hooks += [block.attn2.register_forward_hook(call.blend, with_kwargs=True) for block in found]
    try:
        yield unet
    finally:
        for hook in hooks:
            hook.remove()


class _Call:
    """The hooks, and what they know of the current call of the UNet."""

    def __init__(
        self,
        instances: Instances | None,
        global_weight: float,
        when: Callable[[], bool] | None,
    ):
        self.instances, self.global_weight, self.when = instances, global_weight, when
        self.size = (0, 0)
        self.is_on = self.is_nested = False

    def begin(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the size of the latents."""
        sample = args[0] if args else kwargs["sample"]
        self.size = tuple(sample.shape[-2:])
        self.is_on = self.instances is not None and len(self.instances.text) > 0
        if self.is_on and self.when is not None:
            self.is_on = self.when()
        if self.is_on and self.instances.batch_size != len(sample):
            raise ValueError(
                f"there are instances of {self.instances.batch_size} images, and the UNet was "
                f"given {len(sample)}; for classifier-free guidance double them by "
                "instances.with_unconditional(negative_text)"
            )

    def blend(
        self,
        attention: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor | None:
        """Blends the output of cross-attention, (B, N, C), with those of the instances."""
        if not self.is_on or self.is_nested:
            return None
        tokens = args[0] if args else kwargs["hidden_states"]
        instances = self.instances.to(tokens.device, tokens.dtype)
        images = instances.images  # (V,)
        text: Any = instances.text
        given = kwargs.get("encoder_hidden_states")
        if isinstance(given, tuple):
            text = text, [image_tokens[images] for image_tokens in given[1]]
        self.is_nested = True
        try:
            own = attention(tokens[images], encoder_hidden_states=text)  # (V, N, C)
        finally:
            self.is_nested = False
        masks = box_masks(instances.rois[:, 1:], self._map(tokens.shape[1]))
        masks = masks.to(output.dtype)[..., None]  # (V, N, 1)
        sums = (self.global_weight * output).index_add(0, images, masks * own)
        counts = masks.new_zeros(*output.shape[:2], 1).index_add(0, images, masks)
        weights = self.global_weight + counts
        return torch.where(counts > 0, sums / weights.clamp(min=1e-6), output)

    def _map(self, tokens: int) -> tuple[int, int]:
        rate = math.ceil(math.sqrt(self.size[0] * self.size[1] / tokens))
        height, width = math.ceil(self.size[0] / rate), math.ceil(self.size[1] / rate)
        if height * width != tokens:
            raise ValueError(f"{tokens} tokens are not a map of {height} x {width}")
        return height, width
