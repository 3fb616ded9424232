# python tools/train.py configs/reid/baseline/deit-base_market1501.py
_base_ = "deit-tiny_market1501.py"

model = dict(backbone=dict(model_name="deit_base_patch16_224"))
