# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_swin/agent-swin-small_8xb128_in1k.py --launcher pytorch
_base_ = "agent-swin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_swin_small", drop_path_rate=0.3))
