# python tools/train.py configs/prompting/baselines/linear_vit-base_vtab-cifar.py
_base_ = "../_base_/vtab/cifar.py"

model = dict(prompts=dict(type="linear"))
