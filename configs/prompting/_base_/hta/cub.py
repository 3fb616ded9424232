_base_ = "hta.py"

model = dict(backbone=dict(num_classes=200))
train_dataloader = dict(dataset=dict(data_root="data/cub"))
val_dataloader = dict(dataset=dict(data_root="data/cub"))
test_dataloader = dict(dataset=dict(data_root="data/cub"))
optim_wrapper = dict(optimizer=dict(lr=0.0015, weight_decay=0.5))
