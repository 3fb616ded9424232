_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=6))
train_dataloader = dict(dataset=dict(task="clevr_dist"))
test_dataloader = dict(dataset=dict(task="clevr_dist"))
