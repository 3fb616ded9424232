# DeepLabV3 at output stride 16, on one process. The head is mmseg's: its branches are joined by one
# 3 x 3 convolution, which in the authors' script comes after one of 1 x 1.
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(513, 513),
    ),
    # A file of ImageNet weights: --cfg-options model.backbone.checkpoint=FILE
    backbone=dict(
        type="TimmBackbone", model_name="", out_indices=(4,), output_stride=16, checkpoint=None
    ),
    decode_head=dict(
        type="ASPPHead",
        in_channels="auto",
        in_index=0,
        channels=256,
        dilations=(1, 6, 12, 18),
        dropout_ratio=0.1,
        num_classes=21,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0, avg_non_ignore=True),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
