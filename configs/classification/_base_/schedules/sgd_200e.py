optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="momentum", lr=0.05, momentum=0.9, weight_decay=4e-5),
    paramwise_cfg=dict(decay_vectors=True),
)
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = dict(type="WarmupCosineLR", T_max=200, convert_to_iter_based=True)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=200)
val_cfg = dict()
test_cfg = dict()
