# python tools/train.py configs/reid/dcal/dcal-deit-tiny_dukemtmc.py
_base_ = ["../_base_/datasets/dukemtmc.py", "../_base_/dcal_120e.py"]

model = dict(num_classes=702)
