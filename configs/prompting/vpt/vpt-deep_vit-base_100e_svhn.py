# python tools/train.py configs/prompting/vpt/vpt-deep_vit-base_100e_svhn.py
_base_ = "../_base_/hta/svhn.py"

model = dict(prompts=dict(type="vpt_deep", length=10))
