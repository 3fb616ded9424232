# python tools/train.py configs/reid/baseline/deit-base_dukemtmc.py
_base_ = "deit-tiny_dukemtmc.py"

model = dict(backbone=dict(model_name="deit_base_patch16_224"))
