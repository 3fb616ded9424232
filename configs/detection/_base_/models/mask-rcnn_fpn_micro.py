# Mask R-CNN with narrow heads, for images of about 160 pixels and training from scratch.
_base_ = "mask-rcnn_fpn.py"

model = dict(
    neck=dict(out_channels=64, num_outs=4, norm_cfg=dict(type="BN")),
    rpn_head=dict(
        feat_channels=64,
        anchor_generator=dict(scales=[6], ratios=[0.75, 1.5]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2),
            out_channels=64,
            featmap_strides=[4, 8, 16],
            finest_scale=20,
        ),
        bbox_head=dict(fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2),
            out_channels=64,
            featmap_strides=[4, 8, 16],
            finest_scale=20,
        ),
        mask_head=dict(
            num_convs=2,
            conv_out_channels=64,
            num_classes=10,
            class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(pos_iou_thr=0.6), sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=48, pos_fraction=0.33)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=50), rcnn=dict(max_per_img=30)),
)
