# python tools/train.py configs/prompting/baselines/bias_vit-base_fgvc-cub.py
_base_ = "../_base_/fgvc/cub.py"

model = dict(prompts=dict(type="bias"))
optim_wrapper = dict(optimizer=dict(lr=0.025))
