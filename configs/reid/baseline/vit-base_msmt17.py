# python tools/train.py configs/reid/baseline/vit-base_msmt17.py
_base_ = "deit-tiny_msmt17.py"

model = dict(backbone=dict(model_name="vit_base_patch16_224.orig_in21k"))
