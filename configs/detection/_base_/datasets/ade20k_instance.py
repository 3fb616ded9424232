# Annotations of 100 things, as Mask2Former's tools write them.
_base_ = "iteration_loaders.py"

data_root = "data/ade/ADEChallengeData2016/"
train_dataloader = dict(
    dataset=dict(
        type="ADE20KInstanceDataset",
        data_root=data_root,
        ann_file="ade20k_instance_train.json",
        data_prefix=dict(img="images/training/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
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
            dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="ADE20KInstanceDataset",
        data_root=data_root,
        ann_file="ade20k_instance_val.json",
        data_prefix=dict(img="images/validation/"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="Resize", scale=(2560, 640), keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="FasterCocoMetric",
    ann_file=data_root + "ade20k_instance_val.json",
    metric=["bbox", "segm"],
)
test_evaluator = val_evaluator
