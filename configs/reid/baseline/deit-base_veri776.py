# python tools/train.py configs/reid/baseline/deit-base_veri776.py
_base_ = "deit-tiny_veri776.py"

model = dict(backbone=dict(model_name="deit_base_patch16_224"))
