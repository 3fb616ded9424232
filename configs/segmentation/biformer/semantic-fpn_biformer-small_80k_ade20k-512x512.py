# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/biformer/semantic-fpn_biformer-small_80k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/80k.py",
]
default_scope = "mmseg"

model = dict(
    backbone=dict(
        model_name="biformer_small",
        n_win=8,
        norm_outputs="layernorm2d",
        norm_eval=True,
        drop_path_rate=0.15,
    ),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    loss_scale=dict(init_scale=512.0),
    optimizer=dict(_delete_=True, type="AdamW", lr=2e-4, weight_decay=1e-4),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, begin=0, end=1000, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min_ratio=1e-8, begin=0, end=80_000, by_epoch=False),
]

train_dataloader = dict(batch_size=4)
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
