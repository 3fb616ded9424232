# python tools/train.py configs/fine_grained/baseline/deit-small_cars.py
_base_ = "deit-tiny_cars.py"

model = dict(backbone=dict(model_name="deit_small_patch16_224"))
