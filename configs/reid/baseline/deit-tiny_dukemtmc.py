# python tools/train.py configs/reid/baseline/deit-tiny_dukemtmc.py
_base_ = ["../_base_/datasets/dukemtmc.py", "../_base_/baseline_120e.py"]

model = dict(num_classes=702)
