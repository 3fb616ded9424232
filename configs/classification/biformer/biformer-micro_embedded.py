# python tools/train.py configs/classification/biformer/biformer-micro_embedded.py
_base_ = [
    "../_base_/datasets/embedded_digits_32.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="biformer_tiny",
        num_classes=10,
        depths=(1, 2, 1),
        embed_dims=(32, 64, 128),
        head_dim=16,
        num_heads_last=4,
        n_win=4,
        topks=(4, 8),
        drop_path_rate=0.05,
    ),
    loss=dict(type="LabelSmoothingCrossEntropy", smoothing=0.1),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=2e-3, weight_decay=0.05),
)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=20,
    warmup=2,
    warmup_lr=1e-5,
    min_lr=1e-5,
    convert_to_iter_based=True,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=20, val_interval=2)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(save_best="accuracy/top1"),
)
custom_hooks = [dict(type="ModelEmaHook", decay=0.98)]
