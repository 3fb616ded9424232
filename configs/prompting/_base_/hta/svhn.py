_base_ = "hta.py"

model = dict(backbone=dict(num_classes=10))
train_dataloader = dict(dataset=dict(type="SVHN", data_root="data/svhn"))
val_dataloader = dict(dataset=dict(type="SVHN", data_root="data/svhn"))
test_dataloader = dict(dataset=dict(type="SVHN", data_root="data/svhn"))
optim_wrapper = dict(optimizer=dict(lr=0.002, weight_decay=0.1))
