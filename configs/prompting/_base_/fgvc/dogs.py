_base_ = "fgvc.py"

model = dict(backbone=dict(num_classes=120))
train_dataloader = dict(dataset=dict(data_root="data/stanford_dogs", img_dir="Images"))
val_dataloader = dict(dataset=dict(data_root="data/stanford_dogs", img_dir="Images"))
test_dataloader = dict(dataset=dict(data_root="data/stanford_dogs", img_dir="Images"))
