# VPT's protocol for VTAB-1k: images are squeezed to a square, and not augmented. Settings are
# chosen by training on split="train800" and testing on "val200"; the last run trains on all 1,000,
# and its last weights count.
_base_ = [
    "../models/vit-base_in21k.py",
    "../schedules/sgd_100e.py",
    "../../../_base_/default_runtime.py",
]
default_scope = "visattn"

train_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
    dataset=dict(
        type="VTAB1k",
        data_root="data/vtab-1k",
        task="cifar",
        split="train800val200",
        pipeline=[
            dict(
                type="TimmEvalTransform",
                img_size=224,
                crop_pct=1.0,
                crop_mode="squash",
                interpolation="bilinear",
            )
        ],
    ),
)
test_dataloader = dict(
    batch_size=256,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
    dataset=dict(train_dataloader["dataset"], split="test"),
)
test_evaluator = dict(type="Accuracy", topk=(1,))
train_cfg = dict(val_interval=1000)
val_cfg = None
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
