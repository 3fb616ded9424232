# python tools/train.py configs/fine_grained/baseline/deit-tiny_cars.py
_base_ = ["../_base_/datasets/cars.py", "../_base_/baseline_100e.py"]

model = dict(backbone=dict(num_classes=196))
