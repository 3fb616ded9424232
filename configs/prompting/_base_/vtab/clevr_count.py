_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=8))
train_dataloader = dict(dataset=dict(task="clevr_count"))
test_dataloader = dict(dataset=dict(task="clevr_count"))
