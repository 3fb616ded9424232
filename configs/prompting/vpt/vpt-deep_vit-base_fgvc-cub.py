# python tools/train.py configs/prompting/vpt/vpt-deep_vit-base_fgvc-cub.py
_base_ = "../_base_/fgvc/cub.py"

model = dict(prompts=dict(type="vpt_deep", length=10))
optim_wrapper = dict(optimizer=dict(lr=2.5))
