# The protocol of VPT sweeps base rates and weight decays on the validation set, and then trains on
# all images. The rate is a base rate times the batch over 256, of which this is one.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="momentum", lr=0.25, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(decay_vectors=True),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=90,
        eta_min=0.0,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=100, val_interval=10)
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type="FinalTestHook")]
