# python tools/train.py configs/reid/baseline/deit-small_veri776.py
_base_ = "deit-tiny_veri776.py"

model = dict(backbone=dict(model_name="deit_small_patch16_224"))
