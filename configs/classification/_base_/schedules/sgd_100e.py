optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="momentum", lr=0.1, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(decay_vectors=True),
)
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = dict(type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=100)
val_cfg = dict()
test_cfg = dict()
