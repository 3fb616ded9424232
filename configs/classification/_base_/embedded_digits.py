dataset_type = "ImageFolder"
data_root = "data/embedded/digits"

train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type=dataset_type,
        data_root=f"{data_root}/train",
        pipeline=[
            dict(
                type="TimmTrainTransform",
                img_size=32,
                scale=(0.7, 1.0),
                ratio=(0.85, 1.18),
                hflip=0.0,
                color_jitter=None,
                interpolation="bilinear",
            ),
        ],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type=dataset_type,
        data_root=f"{data_root}/val",
        pipeline=[
            dict(type="TimmEvalTransform", img_size=32, crop_pct=1.0, interpolation="bilinear")
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
