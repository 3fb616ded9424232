_base_ = "imagenet_224.py"

train_dataloader = dict(sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True))
# A square, whatever the ratio of the image, then its centre.
val_dataloader = dict(
    dataset=dict(pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], crop_mode="squash")]),
)
test_dataloader = val_dataloader
