# python tools/train.py configs/fine_grained/baseline/deit-base_cars.py
_base_ = "deit-tiny_cars.py"

model = dict(backbone=dict(model_name="deit_base_patch16_224"))
