_base_ = "../../_base_/default_runtime.py"
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(
        model_name="deit_tiny_patch16_224",
        pretrained=True,
        num_classes=200,
        img_size=448,
        drop_path_rate=0.1,
    ),
    data_preprocessor=dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=5e-4, weight_decay=0.05),
)
auto_scale_lr = dict(enable=True, base_batch_size=512)
param_scheduler = dict(
    type="WarmupCosineLR", T_max=100, warmup=5, warmup_lr=0.0, convert_to_iter_based=True
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=100, val_interval=5)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
