train_dataloader = dict(
    batch_size=512,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="data/imagenet/train",
        pipeline=[dict(type="ProbeTrainTransform", img_size=224)],
    ),
)
val_dataloader = dict(
    batch_size=512,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="data/imagenet/val",
        pipeline=[
            dict(type="TimmEvalTransform", img_size=224, crop_pct=0.875, interpolation="bicubic")
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ProbeAccuracy")
test_evaluator = val_evaluator
