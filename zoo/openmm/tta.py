"""Test-time augmentation of detectors with masks."""

from typing import Any

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

_FLIPPED = {"horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """mmdet's ``DetTTAModel`` for masks, too: each box that stays keeps its mask.

    Args:
        tta_cfg: ``nms`` that joins the views of an image, and ``max_per_img``.
    """

    def _merge_single_sample(self, data_samples: list[Any]) -> Any:
        views = [sample.pred_instances for sample in data_samples]
        if "masks" not in views[0]:
            return super()._merge_single_sample(data_samples)
        metas = [sample.metainfo for sample in data_samples]
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views], [view.scores for view in views], metas
        )
        labels = torch.cat([view.labels for view in views])
        masks = torch.cat(
            [
                view.masks.flip(_FLIPPED[meta["flip_direction"]]) if meta["flip"] else view.masks
                for view, meta in zip(views, metas, strict=True)
            ]
        )
        merged = data_samples[0]
        if len(boxes) == 0:
            return merged
        kept, indices = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
        best = slice(self.tta_cfg.max_per_img)
        indices = indices[best]
        # A new size: assigning to fields of the old one would be refused.
        merged.pred_instances = InstanceData(
            bboxes=kept[best, :-1],
            scores=kept[best, -1],
            labels=labels[indices],
            masks=masks[indices],
        )
        return merged
