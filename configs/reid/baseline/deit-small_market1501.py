# python tools/train.py configs/reid/baseline/deit-small_market1501.py
_base_ = "deit-tiny_market1501.py"

model = dict(backbone=dict(model_name="deit_small_patch16_224"))
