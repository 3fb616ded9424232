# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_swin/agent-swin-base_8xb64_in1k.py --launcher pytorch
_base_ = "agent-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_swin_base", drop_path_rate=0.5))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = dict(warmup_lr=5e-7, min_lr=5e-6)
