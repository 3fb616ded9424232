# python tools/train.py configs/fine_grained/dcal/dcal-deit-base_cub.py
_base_ = "dcal-deit-tiny_cub.py"

model = dict(backbone=dict(model_name="dcal_deit_base_patch16"))
