# python tools/train.py configs/prompting/embedded/vfpt_vit-micro_embedded.py
_base_ = "../_base_/embedded/turned_digits.py"

model = dict(prompts=dict(type="vfpt", length=10))
