_base_ = "fgvc.py"

model = dict(backbone=dict(num_classes=555))
train_dataloader = dict(dataset=dict(data_root="data/nabirds"))
val_dataloader = dict(dataset=dict(data_root="data/nabirds"))
test_dataloader = dict(dataset=dict(data_root="data/nabirds"))
