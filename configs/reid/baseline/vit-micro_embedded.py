# python tools/train.py configs/reid/baseline/vit-micro_embedded.py
_base_ = [
    "../_base_/datasets/embedded_people.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ReIdentifier",
    backbone=dict(
        model_name="deit_tiny_patch16_224",
        img_size=(96, 48),
        patch_size=12,
        depth=4,
        embed_dim=96,
        num_heads=3,
        drop_path_rate=0.05,
    ),
    num_classes=64,
    data_preprocessor=dict(
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        random_erasing=dict(probability=0.3, mode="pixel", max_count=1),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.05),
)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=40,
    warmup=2,
    warmup_lr=1e-5,
    min_lr=1e-5,
    convert_to_iter_based=True,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=40, val_interval=10)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=32))
custom_hooks = [dict(type="FinalTestHook")]
