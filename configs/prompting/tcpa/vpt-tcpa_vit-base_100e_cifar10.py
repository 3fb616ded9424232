# python tools/train.py configs/prompting/tcpa/vpt-tcpa_vit-base_100e_cifar10.py
_base_ = "../_base_/hta/cifar10.py"

model = dict(prompts=dict(type="tcpa", host="vpt_deep"))
