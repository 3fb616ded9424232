_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=47))
train_dataloader = dict(dataset=dict(task="dtd"))
test_dataloader = dict(dataset=dict(task="dtd"))
