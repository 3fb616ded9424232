# One digit somewhere on a photograph, for an encoder that has only seen digits on an empty ground:
#     python tools/train.py configs/classification/vit/vit-micro_embedded.py
_base_ = "../../../_base_/default_runtime.py"
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
    ),
    checkpoint="work_dirs/vit-micro_embedded/epoch_60.pth",
    pool_loss_weight=0.01,
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="data/embedded/glyphs/train",
        pipeline=[
            dict(type="ShortSideTrainTransform", img_size=64, resize=72, hflip=0.0),
        ],
    ),
)
val_dataloader = dict(
    batch_size=180,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="ImageFolder",
        data_root="data/embedded/glyphs/val",
        pipeline=[
            dict(type="TimmEvalTransform", img_size=64, crop_pct=1.0, interpolation="bilinear")
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=5e-3, weight_decay=0.1),
    paramwise_cfg=dict(decay_vectors=True),
)
param_scheduler = dict(
    type="WarmupCosineLR", T_max=20, warmup=2, warmup_lr=1e-4, convert_to_iter_based=True
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=20, val_interval=20)
val_cfg = dict()
test_cfg = dict()

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(max_keep_ckpts=1))
# There is no third part: figures are of the last weights, which nothing was chosen by.
custom_hooks = [dict(type="FinalTestHook")]
