# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_deit/agent-deit-tiny_8xb512_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224_squash.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="agent_deit_tiny", num_classes=1000, drop_path_rate=0.0),
    mixup=dict(
        mixup_alpha=0.8,
        cutmix_alpha=1.0,
        prob=1.0,
        switch_prob=0.5,
        mode="batch",
        label_smoothing=0.1,
    ),
    data_preprocessor=dict(random_erasing=dict(probability=0.25, mode="pixel", max_count=1)),
)
train_dataloader = dict(batch_size=512)
# For 8 GPUs, whose number is not published.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=4e-3, weight_decay=0.05, eps=1e-8),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = dict(
    type="WarmupCosineLR",
    T_max=300,
    warmup=20,
    warmup_lr=4e-6,
    min_lr=4e-5,
    convert_to_iter_based=True,
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=300)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
