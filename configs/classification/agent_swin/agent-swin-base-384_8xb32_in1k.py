# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_swin/agent-swin-base-384_8xb32_in1k.py --launcher pytorch
# Fine-tunes the weights of 224 pixels; give them by
# --cfg-options model.backbone.checkpoint_path=FILE
_base_ = "agent-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_swin_base_384", drop_path_rate=0.5))
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
optim_wrapper = dict(optimizer=dict(lr=1e-5, weight_decay=1e-8))
param_scheduler = dict(T_max=30, warmup=5, warmup_lr=1e-8, min_lr=1e-7)
train_cfg = dict(max_epochs=30)
