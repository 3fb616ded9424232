# python tools/train.py configs/prompting/vfpt/vfpt_vit-base_100e_nabirds.py
_base_ = "../_base_/hta/nabirds.py"

model = dict(prompts=dict(type="vfpt", length=10))
