_base_ = "hta.py"

model = dict(backbone=dict(num_classes=555))
train_dataloader = dict(dataset=dict(data_root="data/nabirds"))
val_dataloader = dict(dataset=dict(data_root="data/nabirds"))
test_dataloader = dict(dataset=dict(data_root="data/nabirds"))
optim_wrapper = dict(optimizer=dict(lr=0.001, weight_decay=0.5))
