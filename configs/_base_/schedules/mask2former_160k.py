# Mask2Former's schedule: the backbone has a tenth of the rate; norms and the embeddings of queries
# and of levels do not decay.
_base_ = "../default_runtime.py"

in_backbone = dict(lr_mult=0.1, decay_mult=0.0)
embedding = dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        # The longest name that a parameter's contains decides.
        custom_keys={
            "backbone": dict(lr_mult=0.1),
            "backbone.norms": in_backbone,
            "stem.norm": in_backbone,
            "downsample.norm": in_backbone,
            ".norm1.weight": in_backbone,
            ".norm1.bias": in_backbone,
            ".norm2.weight": in_backbone,
            ".norm2.bias": in_backbone,
            "query_embed": embedding,
            "query_feat": embedding,
            "level_embed": embedding,
        },
    ),
)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=160_000, by_epoch=False)
]
train_cfg = dict(type="ResumableIterTrainLoop", max_iters=160_000, val_interval=5_000)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=5_000),
)
log_processor = dict(by_epoch=False)
