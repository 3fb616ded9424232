# The authors' rate is 0.12 / 256 for each image of a step.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.12, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"backbone": dict(lr_mult=1 / 3)}),
    clip_grad=dict(max_norm=4.0),
)
auto_scale_lr = dict(enable=True, base_batch_size=256)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.00066667, by_epoch=False, begin=0, end=1500),
    dict(type="MultiStepLR", milestones=[8, 11], gamma=0.1, by_epoch=True, begin=0, end=12),
]
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=12)
val_cfg = dict()
test_cfg = dict()
