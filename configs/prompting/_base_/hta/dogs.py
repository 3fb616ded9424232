_base_ = "hta.py"

model = dict(backbone=dict(num_classes=120))
train_dataloader = dict(dataset=dict(data_root="data/stanford_dogs", img_dir="Images"))
val_dataloader = dict(dataset=dict(data_root="data/stanford_dogs", img_dir="Images"))
test_dataloader = dict(dataset=dict(data_root="data/stanford_dogs", img_dir="Images"))
optim_wrapper = dict(optimizer=dict(lr=0.004, weight_decay=0.5))
