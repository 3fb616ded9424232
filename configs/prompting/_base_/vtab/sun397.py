_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=397))
train_dataloader = dict(dataset=dict(task="sun397"))
test_dataloader = dict(dataset=dict(task="sun397"))
