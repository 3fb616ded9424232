train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="IdentitySampler", num_identities=16, num_instances=4),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="Market1501",
        data_root="data/market1501/",
        split="train",
        pipeline=[
            dict(
                type="ResizeCropTransform",
                img_size=(256, 128),
                is_training=True,
                padding=10,
                hflip=0.5,
                interpolation="bicubic",
            )
        ],
    ),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="Market1501",
        data_root="data/market1501/",
        split="test",
        pipeline=[dict(type="ResizeCropTransform", img_size=(256, 128), interpolation="bicubic")],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ReIDMetric", metric="euclidean", ranks=(1, 5, 10))
test_evaluator = val_evaluator
