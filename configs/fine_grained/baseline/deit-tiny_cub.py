# python tools/train.py configs/fine_grained/baseline/deit-tiny_cub.py
_base_ = ["../_base_/datasets/cub.py", "../_base_/baseline_100e.py"]

model = dict(backbone=dict(num_classes=200))
