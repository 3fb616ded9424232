_base_ = "fgvc.py"

model = dict(backbone=dict(num_classes=200))
train_dataloader = dict(dataset=dict(data_root="data/cub"))
val_dataloader = dict(dataset=dict(data_root="data/cub"))
test_dataloader = dict(dataset=dict(data_root="data/cub"))
