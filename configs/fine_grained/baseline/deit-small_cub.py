# python tools/train.py configs/fine_grained/baseline/deit-small_cub.py
_base_ = "deit-tiny_cub.py"

model = dict(backbone=dict(model_name="deit_small_patch16_224"))
