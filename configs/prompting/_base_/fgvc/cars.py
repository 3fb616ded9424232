_base_ = "fgvc.py"

model = dict(backbone=dict(num_classes=196))
train_dataloader = dict(dataset=dict(data_root="data/stanford_cars", img_dir=""))
val_dataloader = dict(dataset=dict(data_root="data/stanford_cars", img_dir=""))
test_dataloader = dict(dataset=dict(data_root="data/stanford_cars", img_dir=""))
