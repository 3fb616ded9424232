# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_deit/agent-deit-base_8xb128_in1k.py --launcher pytorch
_base_ = "agent-deit-tiny_8xb512_in1k.py"

model = dict(backbone=dict(model_name="agent_deit_base", drop_path_rate=0.3))
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = dict(warmup_lr=1e-6, min_lr=1e-5)
