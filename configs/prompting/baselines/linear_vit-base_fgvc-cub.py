# python tools/train.py configs/prompting/baselines/linear_vit-base_fgvc-cub.py
_base_ = "../_base_/fgvc/cub.py"

model = dict(prompts=dict(type="linear"))
