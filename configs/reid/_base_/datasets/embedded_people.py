train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type="IdentitySampler", num_identities=8, num_instances=4),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="Market1501",
        data_root="data/embedded/reid/",
        split="train",
        check=None,
        pipeline=[
            dict(
                type="ResizeCropTransform",
                img_size=(96, 48),
                is_training=True,
                padding=4,
                hflip=0.5,
                interpolation="bicubic",
            )
        ],
    ),
)
val_dataloader = dict(
    batch_size=112,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="Market1501",
        data_root="data/embedded/reid/",
        split="test",
        check=None,
        pipeline=[dict(type="ResizeCropTransform", img_size=(96, 48), interpolation="bicubic")],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="ReIDMetric", ranks=(1, 5, 10))
test_evaluator = val_evaluator
