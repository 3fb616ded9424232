# python tools/train.py configs/fine_grained/dcal/dcal-deit-base_aircraft.py
_base_ = "dcal-deit-tiny_aircraft.py"

model = dict(backbone=dict(model_name="dcal_deit_base_patch16"))
