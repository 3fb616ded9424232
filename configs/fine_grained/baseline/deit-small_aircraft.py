# python tools/train.py configs/fine_grained/baseline/deit-small_aircraft.py
_base_ = "deit-tiny_aircraft.py"

model = dict(backbone=dict(model_name="deit_small_patch16_224"))
