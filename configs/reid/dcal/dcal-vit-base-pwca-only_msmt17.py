# python tools/train.py configs/reid/dcal/dcal-vit-base-pwca-only_msmt17.py
_base_ = "dcal-vit-base_msmt17.py"

model = dict(backbone=dict(glca_depth=0))
