# Digits of any size anywhere on an empty ground, in training and in validation alike.
_pipeline = [
    dict(
        type="AlbumentationsTransform",
        transforms=[
            dict(type="Resize", height=64, width=64, interpolation=2),
            dict(
                type="Affine", scale=(0.4, 0.9), translate_percent=(-0.25, 0.25), rotate=(-15, 15)
            ),
            dict(type="InvertImg", p=0.5),
            dict(type="ColorJitter", brightness=0.3, contrast=0.3, p=0.8),
        ],
    )
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ImageFolder", data_root="data/embedded/digits/train", pipeline=_pipeline),
)
val_dataloader = dict(
    batch_size=180,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(type="ImageFolder", data_root="data/embedded/digits/val", pipeline=_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
