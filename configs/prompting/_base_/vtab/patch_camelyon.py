_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=2))
train_dataloader = dict(dataset=dict(task="patch_camelyon"))
test_dataloader = dict(dataset=dict(task="patch_camelyon"))
