# Mask2Former with DiNAT-L for semantic segmentation.
_base_ = [
    "../../../_base_/models/mask2former_head.py",
    "../../../_base_/models/dinat-large_11x11.py",
]

num_classes = 150
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(640, 640),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=_base_.dinat_large,
    decode_head=dict(
        **_base_.mask2former_head,
        num_classes=num_classes,
        num_queries=100,
        align_corners=False,
        loss_cls=dict(**_base_.mask2former_loss_cls, class_weight=[1.0] * num_classes + [0.1]),
        train_cfg=_base_.mask2former_train_cfg,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
