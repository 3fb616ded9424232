_base_ = "fgvc.py"

model = dict(backbone=dict(num_classes=102))
train_dataloader = dict(dataset=dict(data_root="data/flowers-102", img_dir="jpg"))
val_dataloader = dict(dataset=dict(data_root="data/flowers-102", img_dir="jpg"))
test_dataloader = dict(dataset=dict(data_root="data/flowers-102", img_dir="jpg"))
