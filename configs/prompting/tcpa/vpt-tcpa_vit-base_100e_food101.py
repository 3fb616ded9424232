# python tools/train.py configs/prompting/tcpa/vpt-tcpa_vit-base_100e_food101.py
_base_ = "../_base_/hta/food101.py"

model = dict(prompts=dict(type="tcpa", host="vpt_deep"))
