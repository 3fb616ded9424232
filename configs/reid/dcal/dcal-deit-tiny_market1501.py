# python tools/train.py configs/reid/dcal/dcal-deit-tiny_market1501.py
_base_ = ["../_base_/datasets/market1501.py", "../_base_/dcal_120e.py"]

model = dict(num_classes=751)
