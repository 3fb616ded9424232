# python tools/train.py configs/reid/baseline/deit-small_msmt17.py
_base_ = "deit-tiny_msmt17.py"

model = dict(backbone=dict(model_name="deit_small_patch16_224"))
