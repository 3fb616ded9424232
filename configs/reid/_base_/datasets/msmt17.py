# Figures of papers are of version 1; blurred faces are for version="V2".
_base_ = "market1501.py"

train_dataloader = dict(dataset=dict(type="MSMT17", data_root="data/msmt17/", version="V1"))
val_dataloader = dict(dataset=dict(type="MSMT17", data_root="data/msmt17/", version="V1"))
test_dataloader = val_dataloader
