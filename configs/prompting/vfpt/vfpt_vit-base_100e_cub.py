# python tools/train.py configs/prompting/vfpt/vfpt_vit-base_100e_cub.py
_base_ = "../_base_/hta/cub.py"

model = dict(prompts=dict(type="vfpt", length=10))
