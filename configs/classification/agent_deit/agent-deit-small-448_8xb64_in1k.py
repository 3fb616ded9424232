# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_deit/agent-deit-small-448_8xb64_in1k.py --launcher pytorch
_base_ = "agent-deit-tiny_8xb512_in1k.py"

model = dict(backbone=dict(model_name="agent_deit_small_448", drop_path_rate=0.1))
train_dataloader = dict(
    batch_size=64,
    dataset=dict(pipeline=[dict(_base_.train_dataloader.dataset.pipeline[0], img_size=448)]),
)
val_dataloader = dict(
    dataset=dict(pipeline=[dict(_base_.val_dataloader.dataset.pipeline[0], img_size=448)]),
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = dict(warmup_lr=5e-7, min_lr=5e-6)
