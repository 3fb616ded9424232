# Annotations of 100 things and 50 kinds of stuff, as Mask2Former's tools write them.
_base_ = "iteration_loaders.py"

data_root = "data/ade/ADEChallengeData2016/"
train_dataloader = dict(
    dataset=dict(
        type="ADE20KPanopticDataset",
        data_root=data_root,
        ann_file="ade20k_panoptic_train.json",
        data_prefix=dict(img="images/training/", seg="ade20k_panoptic_train/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True),
            dict(
                type="RandomChoiceResize",
                scales=[int(640 * 0.1 * x) for x in range(5, 21)],
                resize_type="ResizeShortestEdge",
                max_size=2560,
            ),
            dict(
                type="RandomCrop",
                crop_size=(640, 640),
                crop_type="absolute",
                recompute_bbox=True,
                allow_negative_crop=True,
            ),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="ADE20KPanopticDataset",
        data_root=data_root,
        ann_file="ade20k_panoptic_val.json",
        data_prefix=dict(img="images/validation/", seg="ade20k_panoptic_val/"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="Resize", scale=(2560, 640), keep_ratio=True),
            dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoPanopticMetric",
    ann_file=data_root + "ade20k_panoptic_val.json",
    seg_prefix=data_root + "ade20k_panoptic_val/",
)
test_evaluator = val_evaluator
