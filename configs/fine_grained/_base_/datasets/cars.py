_base_ = "cub.py"

train_dataloader = dict(dataset=dict(type="StanfordCars"))
val_dataloader = dict(dataset=dict(type="StanfordCars"))
test_dataloader = val_dataloader
