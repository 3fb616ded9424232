# python tools/train.py configs/fine_grained/dcal/dcal-deit-small_cub.py
_base_ = "dcal-deit-tiny_cub.py"

model = dict(backbone=dict(model_name="dcal_deit_small_patch16"))
