# UPerNet with narrow heads, for training from scratch on one process. Nine pixels in ten are
# background: at full weight they hide the classes from the first thousand iterations.
class_weight = [0.1] + [1.0] * 10
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(160, 160),
    ),
    backbone=dict(type="TimmBackbone", model_name="", out_indices=(0, 1, 2, 3)),
    decode_head=dict(
        type="UPerHead",
        in_channels="auto",
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=32,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", class_weight=class_weight),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels="auto",
        in_index=2,
        channels=32,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4, class_weight=class_weight),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
