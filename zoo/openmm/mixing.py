"""Mosaic and mixup by chance and for a part of the training, as the YOLO family uses them."""

import random
from collections.abc import Sequence
from typing import Any

from mmdet.datasets.transforms import MixUp, Mosaic, RandomAffine
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS


@TRANSFORMS.register_module()
class MosaicMixUp:
    """A mosaic of four images with some chance, and then with some chance a mixup with a fifth.

    For mmdet's ``MultiImageMixDataset``. Images that no mosaic is made of stay as they are.

    Args:
        img_scale: Width and height of the mosaic.
        mosaic_prob: Chance of a mosaic.
        mixup_prob: Chance of a mixup, given a mosaic.
        scaling_ratio_range: Scales of the mosaic.
        mixup_ratio_range: Scales of the fifth image.
        pad_val: Value of pixels outside images.
    """

    def __init__(
        self,
        img_scale: tuple[int, int] = (640, 640),
        mosaic_prob: float = 0.5,
        mixup_prob: float = 0.5,
        scaling_ratio_range: tuple[float, float] = (0.5, 1.5),
        mixup_ratio_range: tuple[float, float] = (0.8, 1.6),
        pad_val: float = 114.0,
    ):
        self.mosaic_prob = mosaic_prob
        self.mixup_prob = mixup_prob
        img_scale = tuple(img_scale)
        border = tuple(-side // 2 for side in img_scale)
        self.mosaic = Mosaic(img_scale, pad_val=pad_val)
        self.affine = RandomAffine(
            scaling_ratio_range=scaling_ratio_range, border=border, border_val=(pad_val,) * 3
        )
        self.mixup = MixUp(img_scale, mixup_ratio_range, pad_val=pad_val)

    def get_indexes(self, dataset: Any) -> Sequence[int]:
        """The other images: three of the mosaic, one of the mixup."""
        return [*self.mosaic.get_indexes(dataset), self.mixup.get_indexes(dataset)]

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        *others, last = results.pop("mix_results")
        if random.random() >= self.mosaic_prob:
            return results
        results = self.affine(self.mosaic({**results, "mix_results": others}))
        if results is not None and random.random() < self.mixup_prob:
            results = self.mixup({**results, "mix_results": [last]})
        if results is not None:
            results.pop("mix_results", None)
        return results


@HOOKS.register_module()
class MixingStopHook(Hook):
    """Trains without some transforms from an epoch on; also when resumed behind it.

    Args:
        epoch: First epoch without them, counted from 0.
        skip_type_keys: Types of the transforms, in a ``MultiImageMixDataset``.
    """

    def __init__(self, epoch: int, skip_type_keys: Sequence[str] = ("MosaicMixUp",)):
        self.epoch = epoch
        self.skip_type_keys = tuple(skip_type_keys)
        self._stopped = False

    def before_train_epoch(self, runner: Any) -> None:
        """Switches them off, and starts the loader's processes anew, which had copies."""
        if self._stopped or runner.epoch < self.epoch:
            return
        loader = runner.train_dataloader
        loader.dataset.update_skip_type_keys(self.skip_type_keys)
        loader._iterator = None
        self._stopped = True
        runner.logger.info(f"From epoch {runner.epoch} on without {', '.join(self.skip_type_keys)}")
