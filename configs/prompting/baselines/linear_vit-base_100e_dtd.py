# python tools/train.py configs/prompting/baselines/linear_vit-base_100e_dtd.py
_base_ = "../_base_/hta/dtd.py"

model = dict(prompts=dict(type="linear"))
