# python tools/train.py configs/prompting/embedded/linear_vit-micro_embedded.py
_base_ = "../_base_/embedded/turned_digits.py"

model = dict(prompts=dict(type="linear"))
