# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_pvt/agent-pvt-medium_8xb128_in1k.py --launcher pytorch
_base_ = "agent-pvt-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_pvt_medium", drop_path_rate=0.3))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
