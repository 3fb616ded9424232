# python tools/train.py configs/fine_grained/baseline/vit-base_cars.py
_base_ = "deit-tiny_cars.py"

model = dict(backbone=dict(model_name="vit_base_patch16_224.orig_in21k"))
