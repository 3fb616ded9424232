# The schedule of ELA's DeepLabV3: SGD, a power of 0.9, and a tenth of the rate in the backbone.
_base_ = "160k.py"

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.025, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=60_000, by_epoch=False)
]
train_cfg = dict(max_iters=60_000, val_interval=200)
default_hooks = dict(checkpoint=dict(interval=200))
