# Semantic FPN: a feature pyramid whose levels are upsampled and summed.
norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    # The authors' ImageNet file: --cfg-options model.backbone.checkpoint=FILE
    backbone=dict(type="TimmBackbone", model_name="", out_indices=(0, 1, 2, 3), checkpoint=None),
    neck=dict(type="FPN", in_channels="auto", out_channels=256, num_outs=4),
    decode_head=dict(
        type="FPNHead",
        in_channels="auto",
        in_index=[0, 1, 2, 3],
        feature_strides="auto",
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
