optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=5e-4, weight_decay=0.05, eps=1e-8),
)
auto_scale_lr = dict(enable=True, base_batch_size=512)
# Per epoch, as published; the published option of 10 epochs of cooldown had no effect there.
param_scheduler = dict(type="WarmupCosineLR", T_max=300, warmup=5, warmup_lr=1e-6, min_lr=1e-5)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=300)
val_cfg = dict()
test_cfg = dict()
