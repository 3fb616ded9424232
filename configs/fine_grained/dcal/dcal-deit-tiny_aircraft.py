# python tools/train.py configs/fine_grained/dcal/dcal-deit-tiny_aircraft.py
_base_ = ["../_base_/datasets/aircraft.py", "../_base_/dcal_100e.py"]

model = dict(backbone=dict(num_classes=100))
