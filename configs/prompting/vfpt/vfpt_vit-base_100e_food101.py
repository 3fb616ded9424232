# python tools/train.py configs/prompting/vfpt/vfpt_vit-base_100e_food101.py
_base_ = "../_base_/hta/food101.py"

model = dict(prompts=dict(type="vfpt", length=10))
