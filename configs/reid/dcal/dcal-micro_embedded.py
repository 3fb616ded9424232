# python tools/train.py configs/reid/dcal/dcal-micro_embedded.py
_base_ = "../baseline/vit-micro_embedded.py"

model = dict(backbone=dict(model_name="dcal_deit_tiny_patch16", glca_ratio=0.3))
