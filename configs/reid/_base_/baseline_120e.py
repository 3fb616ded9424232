# The baseline of TransReID, from which the paper starts: patches without overlap, no side
# information, no jigsaw.
_base_ = "../../_base_/default_runtime.py"
default_scope = "visattn"

model = dict(
    type="ReIdentifier",
    backbone=dict(
        model_name="deit_tiny_patch16_224",
        pretrained=True,
        img_size=(256, 128),
        drop_path_rate=0.1,
    ),
    num_classes=751,
    id_loss=dict(type="CrossEntropyLoss"),
    metric_losses=[dict(type="BatchHardTripletLoss", margin=None)],
    neck_feat="before",
    data_preprocessor=dict(
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        random_erasing=dict(probability=0.5, mode="pixel", max_count=1),
    ),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    optimizer=dict(type="SGD", lr=0.008, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys=dict(bias=dict(lr_mult=2.0), loss_weights=dict(decay_mult=0.0)),
    ),
)
auto_scale_lr = dict(enable=True, base_batch_size=64)
# Of the biases, whose rate is the highest: 0.01 and 0.002 of it.
param_scheduler = dict(type="WarmupCosineLR", T_max=120, warmup=5, warmup_lr=1.6e-4, min_lr=3.2e-5)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=120, val_interval=20)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(save_best="reid/mAP"))
randomness = dict(seed=1234)
