# python tools/train.py configs/prompting/vpt/vpt-deep_vit-base_100e_cifar10.py
_base_ = "../_base_/hta/cifar10.py"

model = dict(prompts=dict(type="vpt_deep", length=10))
