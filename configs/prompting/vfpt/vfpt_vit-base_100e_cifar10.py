# python tools/train.py configs/prompting/vfpt/vfpt_vit-base_100e_cifar10.py
_base_ = "../_base_/hta/cifar10.py"

model = dict(prompts=dict(type="vfpt", length=10))
