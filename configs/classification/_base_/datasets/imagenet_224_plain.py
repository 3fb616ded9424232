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
        pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], interpolation="bilinear")],
    ),
)
test_dataloader = val_dataloader
