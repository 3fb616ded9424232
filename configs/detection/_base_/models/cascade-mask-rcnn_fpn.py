# Cascade Mask R-CNN with box heads of four convolutions with norms and one layer, and the GIoU loss
# on decoded boxes.
bbox_head = dict(
    type="ConvFCBBoxHead",
    num_shared_convs=4,
    num_shared_fcs=1,
    in_channels="auto",
    conv_out_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=80,
    reg_decoded_bbox=True,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    loss_cls=dict(type="CrossEntropyLoss"),
    loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
)
model = dict(
    type="CascadeRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type="TimmBackbone", model_name="", out_indices=(0, 1, 2, 3)),
    neck=dict(type="FPN", in_channels="auto", out_channels=256, num_outs=5),
    rpn_head=dict(
        type="RPNHead",
        in_channels="auto",
        feat_channels=256,
        anchor_generator=dict(
            type="AnchorGenerator",
            scales=[8],
            ratios=[0.5, 1.0, 2.0],
            strides="auto",
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0 / 9.0),
    ),
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides="auto",
        ),
        bbox_head=[
            dict(
                bbox_head,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]),
            ),
            dict(
                bbox_head,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[0.05, 0.05, 0.1, 0.1]),
            ),
            dict(
                bbox_head,
                bbox_coder=dict(
                    type="DeltaXYWHBBoxCoder", target_stds=[0.033, 0.033, 0.067, 0.067]
                ),
            ),
        ],
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides="auto",
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=4,
            in_channels="auto",
            conv_out_channels=256,
            num_classes=80,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
            ),
            sampler=dict(
                type="RandomSampler", num=256, pos_fraction=0.5, add_gt_as_proposals=False
            ),
            allowed_border=0,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=2000,
            max_per_img=2000,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=[
            dict(
                assigner=dict(
                    type="MaxIoUAssigner",
                    pos_iou_thr=0.5,
                    neg_iou_thr=0.5,
                    min_pos_iou=0.5,
                    match_low_quality=False,
                ),
                sampler=dict(
                    type="RandomSampler", num=512, pos_fraction=0.25, add_gt_as_proposals=True
                ),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            ),
            dict(
                assigner=dict(
                    type="MaxIoUAssigner",
                    pos_iou_thr=0.6,
                    neg_iou_thr=0.6,
                    min_pos_iou=0.6,
                    match_low_quality=False,
                ),
                sampler=dict(
                    type="RandomSampler", num=512, pos_fraction=0.25, add_gt_as_proposals=True
                ),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            ),
            dict(
                assigner=dict(
                    type="MaxIoUAssigner",
                    pos_iou_thr=0.7,
                    neg_iou_thr=0.7,
                    min_pos_iou=0.7,
                    match_low_quality=False,
                ),
                sampler=dict(
                    type="RandomSampler", num=512, pos_fraction=0.25, add_gt_as_proposals=True
                ),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            ),
        ],
    ),
    test_cfg=dict(
        rpn=dict(
            nms_pre=1000,
            max_per_img=1000,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=dict(
            score_thr=0.05,
            nms=dict(type="nms", iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
        ),
    ),
)
