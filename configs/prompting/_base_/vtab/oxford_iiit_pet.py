_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=37))
train_dataloader = dict(dataset=dict(task="oxford_iiit_pet"))
test_dataloader = dict(dataset=dict(task="oxford_iiit_pet"))
