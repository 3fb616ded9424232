# python tools/train.py configs/prompting/vfpt/vfpt_vit-base_100e_gtsrb.py
_base_ = "../_base_/hta/gtsrb.py"

model = dict(prompts=dict(type="vfpt", length=10))
