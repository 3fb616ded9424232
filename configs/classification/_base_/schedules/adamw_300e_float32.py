optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.05, eps=1e-8),
)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=300,
    warmup=20,
    warmup_lr=1e-6,
    min_lr=1e-5,
    convert_to_iter_based=True,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=300)
val_cfg = dict()
test_cfg = dict()
