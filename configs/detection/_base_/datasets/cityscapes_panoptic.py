# Annotations as csCreatePanopticImgs writes them. Their files are not named after the images: the
# metric takes what is true from the data set, which it does where it is told to keep its files.
_base_ = "iteration_loaders.py"

data_root = "data/cityscapes/"
train_dataloader = dict(
    dataset=dict(
        type="CityscapesPanopticDataset",
        data_root=data_root,
        ann_file="gtFine/cityscapes_panoptic_train.json",
        data_prefix=dict(img="leftImg8bit/train/", seg="gtFine/cityscapes_panoptic_train/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True),
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
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="CityscapesPanopticDataset",
        data_root=data_root,
        ann_file="gtFine/cityscapes_panoptic_val.json",
        data_prefix=dict(img="leftImg8bit/val/", seg="gtFine/cityscapes_panoptic_val/"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile", to_float32=True),
            dict(type="Resize", scale=(2048, 1024), keep_ratio=True),
            dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True),
            dict(
                type="PackDetInputs",
                meta_keys=(
                    "img_id",
                    "img_path",
                    "ori_shape",
                    "img_shape",
                    "scale_factor",
                    "segments_info",
                    "seg_map_path",
                ),
            ),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoPanopticMetric",
    seg_prefix=data_root + "gtFine/cityscapes_panoptic_val/",
    outfile_prefix="work_dirs/cityscapes_panoptic/results",
)
test_evaluator = val_evaluator
