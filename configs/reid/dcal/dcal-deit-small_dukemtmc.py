# python tools/train.py configs/reid/dcal/dcal-deit-small_dukemtmc.py
_base_ = "dcal-deit-tiny_dukemtmc.py"

model = dict(backbone=dict(model_name="dcal_deit_small_patch16"))
