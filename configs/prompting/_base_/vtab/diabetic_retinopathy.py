_base_ = "vtab.py"

model = dict(backbone=dict(num_classes=5))
train_dataloader = dict(dataset=dict(task="diabetic_retinopathy"))
test_dataloader = dict(dataset=dict(task="diabetic_retinopathy"))
