# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_swin/agent-swin-small-288_8xb64_in1k.py --launcher pytorch
_base_ = "agent-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_swin_small_288", drop_path_rate=0.3))
train_dataloader = dict(
    batch_size=64,
    dataset=dict(pipeline=[dict(_base_.train_dataloader.dataset.pipeline[0], img_size=288)]),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], img_size=288, crop_pct=1.0)]
    ),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = dict(warmup_lr=5e-7, min_lr=5e-6)
