# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_pvt/agent-pvt-medium-256_8xb64_in1k.py --launcher pytorch
_base_ = "agent-pvt-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_pvt_medium_256", drop_path_rate=0.3))
train_dataloader = dict(
    batch_size=64,
    dataset=dict(pipeline=[dict(_base_.train_dataloader.dataset.pipeline[0], img_size=256)]),
)
val_dataloader = dict(
    dataset=dict(pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], img_size=256)]),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = dict(warmup_lr=1e-6, min_lr=1e-5)
