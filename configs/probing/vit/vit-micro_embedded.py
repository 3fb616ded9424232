# python tools/probe.py configs/probing/vit/vit-micro_embedded.py --seeds 0 1 2
# The network has seen digits on an empty ground alone; it is trained before, by
#     python tools/train.py configs/classification/vit/vit-micro_embedded.py
# Of the digits on photographs its early layers tell more than its last.
_base_ = [
    "../_base_/datasets/embedded_glyphs_64.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="Probe",
    backbone=dict(
        model_name="vit_tiny_patch16_224",
        img_size=64,
        patch_size=8,
        embed_dim=96,
        depth=6,
        num_heads=3,
    ),
    checkpoint="work_dirs/vit-micro_embedded/epoch_60.pth",
    num_classes=10,
    layers=(1,),
    heads=dict(
        linear=dict(pooling="cls"),
        gap=dict(),
        ep4=dict(pooling="ep", num_queries=4),
        ep8=dict(pooling="ep", num_queries=8),
        ep8_d2=dict(pooling="ep", num_queries=8, d_out=2),
        aim=dict(num_heads=8),
        cae=dict(),
    ),
)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="ProbeOptimWrapperConstructor",
    optimizer=dict(type="adamw", lr=1e-2, weight_decay=0.0),
)
param_scheduler = dict(
    type="WarmupCosineLR", T_max=36, warmup=4, warmup_prefix=True, convert_to_iter_based=True
)
train_cfg = dict(type="ResumableEpochTrainLoop", max_epochs=40, val_interval=10)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(interval=40), logger=dict(interval=22))
probing = dict(cached=True, knn=True)
