"""The instances of a batch: boxes with captions, without the empty slots beside them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ["Instances"]


@dataclasses.dataclass(frozen=True, eq=False)
class Instances:
    """Boxes and encoded captions of the instances of B images, which have R slots each.

    ``from_lists`` and ``from_dense`` make them and check them. Boxes stay fp32, whatever the rest
    is converted to.

    Attributes:
        boxes: Corners x1, y1, x2, y2 normalised to [0, 1], (B, R, 4); those of empty slots are 0.
        masks: Which slots are taken, (B, R), bool.
        text: Encoded captions of the V taken slots, image by image, (V, L, D); or (V, layers, L, D)
            with a caption for each cross-attention layer (ED-LoRA).
        slots: Slots of these, (V,), counted over the whole batch.
        counts: Taken slots of each image.
    """

    boxes: torch.Tensor
    masks: torch.Tensor
    text: torch.Tensor
    slots: torch.Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_lists(
        cls,
        images: Sequence[tuple[Any, torch.Tensor]],
        max_instances: int = 30,
        dim: int | None = None,
        length: int = 77,
    ) -> "Instances":
        """Makes them from a list for each image.

        Args:
            images: Of each image its boxes, (n, 4), and encoded captions, (n, L, D) or
                (n, layers, L, D), on one device. n may be 0.
            max_instances: Slots R of an image.
            dim: Channels D of captions, needed if no image has any.
            length: Tokens L of captions, used if no image has any.

        Raises:
            ValueError: If an image has more instances than slots, shapes do not fit, or a box is
                not one.
        """
        parts = [
            (torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4), text)
            for boxes, text in images
        ]
        for i, (boxes, text) in enumerate(parts):
            if len(boxes) > max_instances:
                raise ValueError(
                    f"image {i} has {len(boxes)} instances, and there are {max_instances} slots: "
                    "leave some out, or train with apply(unet, max_instances=...)"
                )
            if len(boxes) != len(text):
                raise ValueError(f"image {i} has {len(boxes)} boxes and {len(text)} captions")
        filled = [text for _, text in parts if len(text)]
        if len({text.shape[1:] for text in filled}) > 1:
            raise ValueError(
                f"captions differ in shape: {sorted({tuple(t.shape[1:]) for t in filled})}"
            )
        if filled:
            text = torch.cat(filled)
        elif parts and parts[0][1].ndim >= 3:
            text = parts[0][1]
        elif dim is not None:
            text = torch.zeros(0, length, dim)
        else:
            raise ValueError("no image has an instance: give dim, the channels of the UNet's text")
        counts = tuple(len(boxes) for boxes, _ in parts)
        boxes = torch.zeros(len(parts), max_instances, 4, device=text.device)
        masks = torch.zeros(len(parts), max_instances, dtype=torch.bool)
        for i, (own, _) in enumerate(parts):
            boxes[i, : len(own)] = own.to(text.device)
            masks[i, : len(own)] = True
        return cls._checked(boxes, masks, text, counts)

    @classmethod
    def from_dense(
        cls, boxes: torch.Tensor, masks: torch.Tensor, text: torch.Tensor, max_instances: int = 30
    ) -> "Instances":
        """Makes them from tensors with padding, as the authors' pipelines take them.

        Args:
            boxes: (B, n, 4).
            masks: Which slots are taken, (B, n), of 0 and 1.
            text: Encoded captions, (B, n, L, D) or (B, n, layers, L, D).
            max_instances: Slots R of an image; those above n are empty.

        Raises:
            ValueError: If there are more than these slots, shapes do not fit, or a box is not one.
        """
        count = boxes.shape[1] if boxes.ndim == 3 else -1
        if boxes.ndim != 3 or boxes.shape[2] != 4 or masks.shape != boxes.shape[:2]:
            raise ValueError(
                "boxes must be (B, n, 4) and masks (B, n); got "
                f"{tuple(boxes.shape)} and {tuple(masks.shape)}"
            )
        if text.ndim not in (4, 5) or text.shape[:2] != masks.shape:
            raise ValueError(
                f"text must be (B, n, L, D) or (B, n, layers, L, D) with (B, n) of masks, "
                f"{tuple(masks.shape)}; got {tuple(text.shape)}"
            )
        if count > max_instances:
            raise ValueError(
                f"there are {count} boxes an image, and {max_instances} slots: leave some out, or "
                "train with apply(unet, max_instances=...)"
            )
        taken = masks.bool().cpu()
        padding = max_instances - count
        boxes = torch.where(masks[..., None].bool(), boxes.float(), 0)
        boxes = torch.nn.functional.pad(boxes, (0, 0, 0, padding))
        counts = tuple(taken.sum(1).tolist())
        text = text[taken.to(text.device)]
        return cls._checked(boxes, torch.nn.functional.pad(taken, (0, padding)), text, counts)

    @classmethod
    def of(cls, value: Any, max_instances: int = 30) -> "Instances":
        """Takes instances, or the dictionary of the authors' pipelines.

        Raises:
            ValueError: If it is neither.
        """
        if isinstance(value, Instances):
            return value
        names = ("instance_boxes", "instance_masks", "instance_embeddings")
        if not isinstance(value, Mapping) or any(name not in value for name in names):
            raise ValueError(
                "cross_attention_kwargs['roictrl'] must be Instances, or a dictionary of "
                f"{', '.join(names)}; got {type(value).__name__}"
            )
        return cls.from_dense(*(value[name] for name in names), max_instances)

    @classmethod
    def _checked(
        cls, boxes: torch.Tensor, masks: torch.Tensor, text: torch.Tensor, counts: tuple[int, ...]
    ) -> "Instances":
        taken = boxes.detach().cpu()[masks]  # (V, 4)
        low, high = taken[:, :2], taken[:, 2:]
        wrong = ~((low < high).all(1) & (low > -1e-4).all(1) & (high < 1 + 1e-4).all(1))
        if wrong.any():
            place = wrong.nonzero()[0].item()
            image, slot = masks.nonzero()[place].tolist()
            raise ValueError(
                f"box {slot} of image {image} is {[round(v, 4) for v in taken[place].tolist()]}: "
                "it must be x1 < x2 and y1 < y2 within [0, 1]; divide pixels by width and height"
            )
        slots = masks.flatten().nonzero()[:, 0]
        return cls(boxes, masks.to(boxes.device), text, slots.to(boxes.device), counts)

    @property
    def batch_size(self) -> int:
        """Images."""
        return len(self.counts)

    @property
    def max_instances(self) -> int:
        """Slots of an image."""
        return self.boxes.shape[1]

    @property
    def rois(self) -> torch.Tensor:
        """Taken boxes behind the index of their image, (V, 5), normalised to [0, 1]."""
        boxes = self.boxes.flatten(0, 1)[self.slots]
        return torch.cat((self.images[:, None].to(boxes.dtype), boxes), 1)

    @property
    def images(self) -> torch.Tensor:
        """Images of the taken slots, (V,)."""
        return torch.div(self.slots, self.max_instances, rounding_mode="floor")

    def to(
        self, device: Any = None, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> "Instances":
        """Moves all, and converts what is encoded; boxes stay fp32."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device

        def move(value: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
            return value.to(device=device, dtype=dtype, non_blocking=non_blocking)

        return Instances(
            move(self.boxes),
            move(self.masks),
            move(self.text, dtype),
            move(self.slots),
            self.counts,
        )

    def repeat(self, times: int) -> "Instances":
        """Each image so many times, one behind the other, as pipelines repeat prompts."""
        order = [i for i in range(self.batch_size) for _ in range(times)]
        return self._select(order)

    def with_unconditional(self, text: torch.Tensor | None) -> "Instances":
        """A batch twice as large for classifier-free guidance, the unconditional half first.

        Args:
            text: Encoded negative prompts, (B, L, D) or (B, layers, L, D), which all captions of
                the unconditional half are; None leaves that half without instances.
        """
        if text is None:
            empty = dataclasses.replace(
                self,
                boxes=torch.zeros_like(self.boxes),
                masks=torch.zeros_like(self.masks),
                text=self.text[:0],
                slots=self.slots[:0],
                counts=(0,) * self.batch_size,
            )
        else:
            empty = dataclasses.replace(self, text=text.to(self.text)[self.images])
        return empty._join(self)

    def _join(self, other: "Instances") -> "Instances":
        return Instances(
            torch.cat((self.boxes, other.boxes)),
            torch.cat((self.masks, other.masks)),
            torch.cat((self.text, other.text)),
            torch.cat((self.slots, other.slots + self.masks.numel())),
            self.counts + other.counts,
        )

    def _select(self, order: Sequence[int]) -> "Instances":
        """The images of an order, in which they may come several times."""
        starts = [0]
        for count in self.counts:
            starts.append(starts[-1] + count)
        taken = [v for i in order for v in range(starts[i], starts[i + 1])]
        rows = torch.tensor(taken, dtype=torch.long, device=self.slots.device)
        masks = self.masks[list(order)]
        return Instances(
            self.boxes[list(order)],
            masks,
            self.text[rows.to(self.text.device)],
            masks.flatten().nonzero()[:, 0],
            tuple(self.counts[i] for i in order),
        )
