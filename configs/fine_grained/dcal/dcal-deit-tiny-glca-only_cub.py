# python tools/train.py configs/fine_grained/dcal/dcal-deit-tiny-glca-only_cub.py
_base_ = "dcal-deit-tiny_cub.py"

model = dict(backbone=dict(pwca_depth=0))
