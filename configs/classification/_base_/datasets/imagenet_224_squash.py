_base_ = "imagenet_224.py"

train_dataloader = dict(sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True))
# A square, whatever the ratio of the image, then its centre.
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(
                type="TimmEvalTransform",
                img_size=224,
                crop_pct=0.875,
                crop_mode="squash",
                interpolation="bicubic",
            )
        ],
    ),
)
test_dataloader = val_dataloader
