# UPerNet's schedule: AdamW, 1,500 iterations of warm-up under a line that falls from the first
# iteration to the last.
_base_ = "../../../_base_/default_runtime.py"

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=160_000, by_epoch=False),
]
train_cfg = dict(type="ResumableIterTrainLoop", max_iters=160_000, val_interval=16_000)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16_000, save_best="mIoU"),
)
log_processor = dict(by_epoch=False)
