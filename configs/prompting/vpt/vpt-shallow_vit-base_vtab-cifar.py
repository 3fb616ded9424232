# python tools/train.py configs/prompting/vpt/vpt-shallow_vit-base_vtab-cifar.py
_base_ = "../_base_/vtab/cifar.py"

model = dict(prompts=dict(type="vpt_shallow", length=50))
optim_wrapper = dict(optimizer=dict(lr=2.5))
