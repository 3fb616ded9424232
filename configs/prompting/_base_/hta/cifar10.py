_base_ = "hta.py"

model = dict(backbone=dict(num_classes=10))
train_dataloader = dict(dataset=dict(type="CIFAR10", data_root="data"))
val_dataloader = dict(dataset=dict(type="CIFAR10", data_root="data"))
test_dataloader = dict(dataset=dict(type="CIFAR10", data_root="data"))
optim_wrapper = dict(optimizer=dict(lr=0.005, weight_decay=0.1))
