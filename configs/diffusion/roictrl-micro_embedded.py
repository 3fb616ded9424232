# python tools/train.py configs/diffusion/roictrl-micro_embedded.py
# Needs what configs/diffusion/base-micro_embedded.py writes.
_base_ = ["_base_/datasets/embedded_cards.py", "_base_/schedule.py"]
default_scope = "visattn"

model = dict(
    type="LatentDiffusion",
    pretrained="work_dirs/base-micro_embedded/pipeline",
    # Boxes on maps of 8 x 8 and 4 x 4 are of a few places.
    roictrl=dict(unpool_mode="aligned", roi_sizes={8: 6, 16: 4}, max_instances=2),
    sampling=dict(num_inference_steps=25, guidance_scale=2.0),
)
train_dataloader = dict(dataset=dict(max_instances=2))
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01),
    # The gates begin shut.
    paramwise_cfg=dict(custom_keys={"alpha_": dict(lr_mult=10.0, decay_mult=0.0)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = dict(
    type="WarmupCosineLR", T_max=750, warmup=50, warmup_lr=1e-5, min_lr=1e-5, by_epoch=False
)
train_cfg = dict(type="ResumableIterTrainLoop", max_iters=750, val_interval=750)
default_hooks = dict(checkpoint=dict(interval=250))
custom_hooks = [
    dict(type="ModelEmaHook", decay=0.99),
    dict(type="SavePipelineHook"),
]
