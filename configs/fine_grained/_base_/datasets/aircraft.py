_base_ = "cub.py"

train_dataloader = dict(dataset=dict(type="FGVCAircraft"))
val_dataloader = dict(dataset=dict(type="FGVCAircraft"))
test_dataloader = val_dataloader
