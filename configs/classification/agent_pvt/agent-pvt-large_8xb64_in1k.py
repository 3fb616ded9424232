# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_pvt/agent-pvt-large_8xb64_in1k.py --launcher pytorch
_base_ = "agent-pvt-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_pvt_large", drop_path_rate=0.3))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = dict(warmup_lr=1e-6, min_lr=1e-5)
