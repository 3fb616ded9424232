# Annotations as mmdet's converter writes them.
_base_ = "iteration_loaders.py"

data_root = "data/cityscapes/"
train_dataloader = dict(
    dataset=dict(
        type="CityscapesDataset",
        data_root=data_root,
        ann_file="annotations/instancesonly_filtered_gtFine_train.json",
        data_prefix=dict(img="leftImg8bit/train/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                type="RandomChoiceResize",
                scales=[int(1024 * 0.1 * x) for x in range(5, 21)],
                resize_type="ResizeShortestEdge",
                max_size=4096,
            ),
            dict(
                type="RandomCrop",
                crop_size=(1024, 512),
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
        type="CityscapesDataset",
        data_root=data_root,
        ann_file="annotations/instancesonly_filtered_gtFine_val.json",
        data_prefix=dict(img="leftImg8bit/val/"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
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
    ann_file=data_root + "annotations/instancesonly_filtered_gtFine_val.json",
    metric=["bbox", "segm"],
)
test_evaluator = val_evaluator
