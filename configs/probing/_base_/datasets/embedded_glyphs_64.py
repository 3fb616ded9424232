# One digit somewhere on a photograph.
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="data/embedded/glyphs/train",
        pipeline=[dict(type="ProbeTrainTransform", img_size=64, scale=(0.7, 1.0), hflip=0.0)],
    ),
)
val_dataloader = dict(
    batch_size=180,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="data/embedded/glyphs/val",
        pipeline=[
            dict(type="TimmEvalTransform", img_size=64, crop_pct=1.0, interpolation="bicubic")
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ProbeAccuracy")
test_evaluator = val_evaluator
