# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_cswin/agent-cswin-base_8xb64_in1k.py --launcher pytorch
_base_ = "agent-cswin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_cswin_base", drop_path_rate=0.5))
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.1))
param_scheduler = dict(warmup_lr=1e-6, min_lr=1e-5)
custom_hooks = [dict(type="ModelEmaHook", decay=0.99992)]
