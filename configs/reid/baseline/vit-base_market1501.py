# python tools/train.py configs/reid/baseline/vit-base_market1501.py
_base_ = "deit-tiny_market1501.py"

model = dict(backbone=dict(model_name="vit_base_patch16_224.orig_in21k"))
