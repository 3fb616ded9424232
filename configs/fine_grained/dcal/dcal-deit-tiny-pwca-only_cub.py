# python tools/train.py configs/fine_grained/dcal/dcal-deit-tiny-pwca-only_cub.py
_base_ = "dcal-deit-tiny_cub.py"

model = dict(backbone=dict(glca_depth=0))
