_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=4))
train_dataloader = dict(dataset=dict(task="kitti"))
test_dataloader = dict(dataset=dict(task="kitti"))
