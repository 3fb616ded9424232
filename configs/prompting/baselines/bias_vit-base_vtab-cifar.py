# python tools/train.py configs/prompting/baselines/bias_vit-base_vtab-cifar.py
_base_ = "../_base_/vtab/cifar.py"

model = dict(prompts=dict(type="bias"))
optim_wrapper = dict(optimizer=dict(lr=0.025))
