# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_cswin/agent-cswin-base-384_8xb32_in1k.py --launcher pytorch
# Fine-tunes the weights of 224 pixels; give them by
# --cfg-options model.backbone.checkpoint_path=FILE
_base_ = "agent-cswin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_cswin_base_384", drop_path_rate=0.7))
train_dataloader = dict(
    batch_size=32,
    dataset=dict(pipeline=[dict(_base_.train_dataloader.dataset.pipeline[0], img_size=384)]),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], img_size=384, crop_pct=1.0)]
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2.5e-6, weight_decay=1e-8))
param_scheduler = dict(T_max=20, warmup=0, warmup_lr=2.5e-6, min_lr=2.5e-7)
train_cfg = dict(max_epochs=30)
custom_hooks = [dict(type="ModelEmaHook", decay=0.9998)]
