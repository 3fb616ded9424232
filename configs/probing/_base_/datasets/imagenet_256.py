_base_ = "imagenet_224.py"

train_dataloader = dict(
    dataset=dict(pipeline=[dict(_base_.train_dataloader.dataset.pipeline[0], img_size=256)]),
)
val_dataloader = dict(
    dataset=dict(pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], img_size=256)]),
)
test_dataloader = val_dataloader
