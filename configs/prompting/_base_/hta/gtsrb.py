_base_ = "hta.py"

model = dict(backbone=dict(num_classes=43))
train_dataloader = dict(dataset=dict(type="GTSRB", data_root="data"))
val_dataloader = dict(dataset=dict(type="GTSRB", data_root="data"))
test_dataloader = dict(dataset=dict(type="GTSRB", data_root="data"))
optim_wrapper = dict(optimizer=dict(lr=0.001, weight_decay=0.1))
