# python tools/train.py configs/prompting/vpt/vpt-deep_vit-base_vtab-svhn.py
_base_ = "../_base_/vtab/svhn.py"

model = dict(prompts=dict(type="vpt_deep", length=10))
optim_wrapper = dict(optimizer=dict(lr=2.5))
