# python tools/train.py configs/segmentation/biformer/upernet_biformer-micro_embedded.py
_base_ = [
    "../_base_/models/upernet_micro.py",
    "../_base_/datasets/embedded_scenes_semantic.py",
    "../../_base_/default_runtime.py",
]
default_scope = "mmseg"

model = dict(
    backbone=dict(
        model_name="biformer_tiny",
        depths=(1, 1, 2, 1),
        embed_dims=(32, 64, 128, 256),
        n_win=5,
        topks=(2, 4, 8),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=30,
    warmup=2,
    warmup_lr=1e-5,
    min_lr=1e-5,
    convert_to_iter_based=True,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=30, val_interval=10)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(save_best="mIoU"),
)
