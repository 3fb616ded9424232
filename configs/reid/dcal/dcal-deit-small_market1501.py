# python tools/train.py configs/reid/dcal/dcal-deit-small_market1501.py
_base_ = "dcal-deit-tiny_market1501.py"

model = dict(backbone=dict(model_name="dcal_deit_small_patch16"))
