# lr is that of a batch of 256.
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="bfloat16",
    constructor="ProbeOptimWrapperConstructor",
    optimizer=dict(type="lars", lr=0.1, momentum=0.9, weight_decay=0.0, trust_coeff=0.001, eps=0.0),
)
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=80,
    warmup=10,
    warmup_prefix=True,
    convert_to_iter_based=True,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=90)
val_cfg = dict()
test_cfg = dict()
