# Mask2Former with DiNAT-L for panoptic segmentation of COCO: 80 things and 53 kinds of stuff.
_base_ = [
    "../../../_base_/models/mask2former_head.py",
    "../../../_base_/models/dinat-large_11x11.py",
]

model = dict(
    type="Mask2Former",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
        pad_mask=True,
        mask_pad_value=0,
        pad_seg=True,
        seg_pad_value=255,
        batch_augments=[
            dict(
                type="BatchFixedSizePad",
                size=(1024, 1024),
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
                pad_seg=True,
                seg_pad_value=255,
            )
        ],
    ),
    backbone=_base_.dinat_large,
    panoptic_head=dict(
        **_base_.mask2former_head,
        num_things_classes=80,
        num_stuff_classes=53,
        num_queries=200,
        loss_cls=dict(**_base_.mask2former_loss_cls, class_weight=[1.0] * 133 + [0.1]),
    ),
    panoptic_fusion_head=dict(
        type="MaskFormerFusionHead", num_things_classes=80, num_stuff_classes=53
    ),
    train_cfg=_base_.mask2former_train_cfg,
    test_cfg=dict(
        panoptic_on=True,
        semantic_on=False,
        instance_on=True,
        max_per_image=100,
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
