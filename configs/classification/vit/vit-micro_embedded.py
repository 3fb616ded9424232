# python tools/train.py configs/classification/vit/vit-micro_embedded.py
# The frozen encoder that the embedded recipes of probing and prompting start from.
_base_ = [
    "../_base_/datasets/embedded_digits_64_moved.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="vit_tiny_patch16_224",
        num_classes=10,
        img_size=64,
        patch_size=8,
        embed_dim=96,
        depth=6,
        num_heads=3,
        drop_path_rate=0.05,
    ),
    loss=dict(type="LabelSmoothingCrossEntropy", smoothing=0.1),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=60,
    warmup=3,
    warmup_lr=1e-5,
    min_lr=1e-5,
    convert_to_iter_based=True,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=60, val_interval=6)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(save_best="accuracy/top1", interval=6),
)
