# Crops and flips alone.
_base_ = "imagenet_224.py"

train_dataloader = dict(
    sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True),
    dataset=dict(
        pipeline=[
            dict(
                type="TimmTrainTransform",
                img_size=224,
                color_jitter=None,
                interpolation="bilinear",
            )
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type="TimmEvalTransform",
                img_size=224,
                crop_pct=0.875,
                interpolation="bilinear",
            )
        ],
    ),
)
test_dataloader = val_dataloader
