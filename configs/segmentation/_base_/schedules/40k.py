# The schedule of Semantic FPN: AdamW and a power of 0.9.
_base_ = "160k.py"

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=2e-4, weight_decay=1e-4),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=40_000, by_epoch=False)]
train_cfg = dict(max_iters=40_000, val_interval=4_000)
default_hooks = dict(checkpoint=dict(interval=4_000))
