_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=18))
train_dataloader = dict(dataset=dict(task="smallnorb_azi"))
test_dataloader = dict(dataset=dict(task="smallnorb_azi"))
