_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=10))
train_dataloader = dict(dataset=dict(task="svhn"))
test_dataloader = dict(dataset=dict(task="svhn"))
