# The rate is for 64 images a step. Mosaic and mixup end after a fifth of the epochs.
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    optimizer=dict(type="SGD", lr=1.225e-2, momentum=0.937, weight_decay=5e-4, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
auto_scale_lr = dict(enable=True, base_batch_size=64)
param_scheduler = dict(
    type="YOLOXWarmCosineLR",
    T_max=72,
    warmup=3,
    warmup_ratio=0.1,
    constant=3.6,
    min_ratio=0.01,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=72)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [
    dict(type="MixingStopHook", epoch=14, priority=48),
    dict(type="ModelEmaHook", decay=0.9999),
]
