# python tools/train.py configs/prompting/vfpt/vfpt_vit-base_100e_dogs.py
_base_ = "../_base_/hta/dogs.py"

model = dict(prompts=dict(type="vfpt", length=10))
