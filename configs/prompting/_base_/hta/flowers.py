_base_ = "hta.py"

model = dict(backbone=dict(num_classes=102))
train_dataloader = dict(dataset=dict(data_root="data/flowers-102", img_dir="jpg"))
val_dataloader = dict(dataset=dict(data_root="data/flowers-102", img_dir="jpg"))
test_dataloader = dict(dataset=dict(data_root="data/flowers-102", img_dir="jpg"))
optim_wrapper = dict(optimizer=dict(lr=0.014, weight_decay=1.4))
