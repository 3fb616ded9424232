# python tools/train.py configs/prompting/baselines/adaptformer_vit-base_vtab-cifar.py
_base_ = "../_base_/vtab/cifar.py"

model = dict(prompts=dict(type="adaptformer"))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="adamw", lr=1e-3, weight_decay=1e-4),
)
