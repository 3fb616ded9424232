optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.05, eps=1e-8),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=300,
    warmup=20,
    warmup_lr=1e-6,
    min_lr=5e-6,
    convert_to_iter_based=True,
)
# The last 10 epochs are at the lowest rate.
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=310)
val_cfg = dict()
test_cfg = dict()
