train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CUB200",
        data_root="data/fine_grained/",
        split="train",
        pipeline=[
            dict(
                type="ResizeCropTransform",
                img_size=448,
                resize=550,
                is_training=True,
                hflip=0.5,
                interpolation="bilinear",
            )
        ],
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="CUB200",
        data_root="data/fine_grained/",
        split="test",
        pipeline=[
            dict(type="ResizeCropTransform", img_size=448, resize=550, interpolation="bilinear")
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
