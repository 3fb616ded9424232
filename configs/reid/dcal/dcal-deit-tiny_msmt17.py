# python tools/train.py configs/reid/dcal/dcal-deit-tiny_msmt17.py
_base_ = ["../_base_/datasets/msmt17.py", "../_base_/dcal_120e.py"]

model = dict(num_classes=1041)
