_base_ = "market1501.py"

train_dataloader = dict(dataset=dict(type="DukeMTMCReID", data_root="data/dukemtmc-reid/"))
val_dataloader = dict(dataset=dict(type="DukeMTMCReID", data_root="data/dukemtmc-reid/"))
test_dataloader = val_dataloader
