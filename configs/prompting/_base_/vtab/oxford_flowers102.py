_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=102))
train_dataloader = dict(dataset=dict(task="oxford_flowers102"))
test_dataloader = dict(dataset=dict(task="oxford_flowers102"))
