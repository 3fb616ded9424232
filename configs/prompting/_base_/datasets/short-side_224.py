# The shorter side to 256 pixels, and crops of 224.
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ListedImages",
        data_root="data/cub",
        split="train",
        pipeline=[dict(type="ShortSideTrainTransform", img_size=224, resize=256)],
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
        type="ListedImages",
        data_root="data/cub",
        split="val",
        pipeline=[
            dict(type="TimmEvalTransform", img_size=224, crop_pct=0.875, interpolation="bilinear")
        ],
    ),
)
# A copy of its own: the two differ in their split.
test_dataloader = dict(val_dataloader, dataset=dict(val_dataloader["dataset"], split="test"))
val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
