_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=100))
train_dataloader = dict(dataset=dict(task="cifar"))
test_dataloader = dict(dataset=dict(task="cifar"))
