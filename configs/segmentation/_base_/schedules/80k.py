_base_ = "160k.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=80_000, by_epoch=False),
]
train_cfg = dict(max_iters=80_000, val_interval=8_000)
default_hooks = dict(checkpoint=dict(interval=8_000))
