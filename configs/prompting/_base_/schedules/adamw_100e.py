optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.1),
    paramwise_cfg=dict(decay_vectors=True),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=80,
        eta_min=0.0,
        begin=20,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=100)
val_cfg = dict()
test_cfg = dict()
# The test set has no part in training: the last weights and those best on the validation set.
custom_hooks = [dict(type="FinalTestHook")]
