# python tools/train.py configs/reid/dcal/dcal-deit-base_veri776.py
_base_ = "dcal-deit-tiny_veri776.py"

model = dict(backbone=dict(model_name="dcal_deit_base_patch16"))
