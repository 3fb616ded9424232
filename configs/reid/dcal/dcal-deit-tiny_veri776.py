# python tools/train.py configs/reid/dcal/dcal-deit-tiny_veri776.py
_base_ = ["../_base_/datasets/veri776.py", "../_base_/dcal_120e.py"]

model = dict(num_classes=576, backbone=dict(img_size=(256, 256)))
