# python tools/train.py configs/reid/dcal/dcal-deit-base_market1501.py
_base_ = "dcal-deit-tiny_market1501.py"

model = dict(backbone=dict(model_name="dcal_deit_base_patch16"))
