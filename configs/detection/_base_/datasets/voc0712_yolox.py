# Trained on trainval of 2007 and 2012, tested on the test set of 2007.
_base_ = "yolox_pipelines.py"
data_root = "data/VOCdevkit/"
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="MultiImageMixDataset",
        dataset=dict(
            type="ConcatDataset",
            datasets=[
                dict(
                    type="VOCDataset",
                    data_root=data_root,
                    ann_file=f"{year}/ImageSets/Main/trainval.txt",
                    data_prefix=dict(sub_data_root=f"{year}/"),
                    filter_cfg=dict(filter_empty_gt=False, min_size=32),
                    pipeline=_base_.load_pipeline,
                )
                for year in ("VOC2007", "VOC2012")
            ],
        ),
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VOCDataset",
        data_root=data_root,
        ann_file="VOC2007/ImageSets/Main/test.txt",
        data_prefix=dict(sub_data_root="VOC2007/"),
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="VOCMetric", metric="mAP", eval_mode="area")
test_evaluator = val_evaluator
