_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=9))
train_dataloader = dict(dataset=dict(task="smallnorb_ele"))
test_dataloader = dict(dataset=dict(task="smallnorb_ele"))
