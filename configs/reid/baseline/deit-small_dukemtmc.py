# python tools/train.py configs/reid/baseline/deit-small_dukemtmc.py
_base_ = "deit-tiny_dukemtmc.py"

model = dict(backbone=dict(model_name="deit_small_patch16_224"))
