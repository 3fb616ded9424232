# python tools/train.py configs/fine_grained/dcal/dcal-deit-tiny_cub.py
_base_ = ["../_base_/datasets/cub.py", "../_base_/dcal_100e.py"]

model = dict(backbone=dict(num_classes=200))
