# python tools/train.py configs/prompting/vpt/vpt-deep_vit-base_100e_cifar100.py
_base_ = "../_base_/hta/cifar100.py"

model = dict(prompts=dict(type="vpt_deep", length=10))
