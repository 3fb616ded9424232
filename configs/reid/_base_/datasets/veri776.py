_base_ = "market1501.py"

train_dataloader = dict(
    dataset=dict(
        type="VeRi776",
        data_root="data/veri776/",
        pipeline=[dict(_base_.train_dataloader.dataset.pipeline[0], img_size=(256, 256))],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="VeRi776",
        data_root="data/veri776/",
        pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], img_size=(256, 256))],
    ),
)
test_dataloader = val_dataloader
