_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=45))
train_dataloader = dict(dataset=dict(task="resisc45"))
test_dataloader = dict(dataset=dict(task="resisc45"))
