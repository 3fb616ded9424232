# python tools/train.py configs/reid/baseline/deit-tiny_market1501.py
_base_ = ["../_base_/datasets/market1501.py", "../_base_/baseline_120e.py"]

model = dict(num_classes=751)
