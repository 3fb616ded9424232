"""Detectors and segmentors set up for inference and training steps on synthetic images."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..config import load_config
from ..errors import UserError
from ..models import Size, build_configured
from ..openmm.convert import is_dense
from .counters import count_macs
from .subject import Settings, Subject

SIZES = {"mmdet": (800, 1333), "mmseg": (512, 512)}
"""Height and width in pixels that detectors and segmentors are compared at."""

INSTANCES = 7
"""Annotated instances an image; COCO has about as many."""


class DenseSubject(Subject):
    """A detector or segmentor on a device, with one batch of images and made-up annotations.

    An inference is that of the network: of detectors with proposals, also what is made of a
    thousand of them and the masks of a hundred; without the suppression of doubles at the end,
    which random weights would make too little of. Images are padded as the model pads them.

    Args:
        name: Path of a configuration, with ``@IMPL`` for an implementation of visattn's ops.
        settings: How to run it.

    Raises:
        UserError: If the configuration is not of a detector or segmentor.
    """

    def _build(self, name: str) -> nn.Module:
        if self.settings.model_kwargs:
            raise UserError(f"--model-kwargs is for names, not for {name}: edit the configuration")
        cfg = load_config(name)
        model = build_configured(cfg)
        if not is_dense(model):
            raise UserError(
                f"{name} is of a {type(model).__name__}, neither detector nor segmentor: "
                "give the name of the model"
            )
        self.img_size = self.settings.img_size or SIZES[cfg.default_scope]
        return _Network(model, cfg.default_scope, self.img_size, self.settings)

    def _make_images(self, model: nn.Module) -> torch.Tensor:
        return torch.randn(self.settings.batch_size, 3, *model.padded_size)

    def _count_macs(self, model: nn.Module) -> int:
        from mmcv.ops import RoIAlign

        # Our definition of it is by products, which papers do not count.
        return count_macs(model, self._images[:1], leave_out=(RoIAlign,))

    def _compile(self, model: nn.Module) -> Callable[..., Any]:
        model.model.backbone.compile()
        return model

    def _prepare_loss(self) -> None:
        pass

    def _compute_loss(self) -> torch.Tensor:
        return self._raw_model.loss(self._images)


class _Network(nn.Module):
    """A model of images alone, with the annotations that its losses need."""

    def __init__(self, model: nn.Module, scope: str, size: Size, settings: Settings):
        super().__init__()
        self.model = model
        divisor = getattr(model.data_preprocessor, "pad_size_divisor", 1)
        self.padded_size = tuple(math.ceil(side / divisor) * divisor for side in size)
        make = _make_detections if scope == "mmdet" else _make_segmentation
        self.samples = [make(model, self.padded_size) for _ in range(settings.batch_size)]
        self.samples = [sample.to(settings.device) for sample in self.samples]

    def forward(self, images: torch.Tensor) -> Any:
        """Images (B, 3, H, W) to what the heads give."""
        return self.model(images, self.samples[: len(images)], mode="tensor")

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """The sum of the losses."""
        losses = self.model(images, self.samples, mode="loss")
        return self.model.parse_losses(losses)[0]


def _make_detections(model: nn.Module, size: Size) -> Any:
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    height, width = size
    limits = torch.tensor([width, height])
    low = torch.rand(INSTANCES, 2) * 0.7 * limits
    boxes = torch.cat([low, low + (0.05 + 0.25 * torch.rand(INSTANCES, 2)) * limits], 1)
    masks = np.zeros((INSTANCES, *size), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    panoptic = getattr(model, "panoptic_head", None)
    classes = panoptic.num_things_classes if panoptic is not None else 1
    labels = torch.randint(max(classes, 1), (INSTANCES,))
    sample = DetDataSample(metainfo=_meta_of(size))
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=labels, masks=BitmapMasks(masks, height, width)
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    if panoptic is not None:
        sample.gt_sem_seg = PixelData(sem_seg=torch.randint(panoptic.num_classes, (1, *size)))
    return sample


def _make_segmentation(model: nn.Module, size: Size) -> Any:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=_meta_of(size))
    classes = model.decode_head.num_classes
    sample.gt_sem_seg = PixelData(data=torch.randint(classes, (1, *size)))
    return sample


def _meta_of(size: Size) -> dict[str, Any]:
    return {
        "img_id": 0,
        "img_path": None,
        "img_shape": size,
        "ori_shape": size,
        "pad_shape": size,
        "batch_input_shape": size,
        "scale_factor": (1.0, 1.0),
        "flip": False,
    }
