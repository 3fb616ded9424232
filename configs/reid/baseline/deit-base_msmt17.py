# python tools/train.py configs/reid/baseline/deit-base_msmt17.py
_base_ = "deit-tiny_msmt17.py"

model = dict(backbone=dict(model_name="deit_base_patch16_224"))
