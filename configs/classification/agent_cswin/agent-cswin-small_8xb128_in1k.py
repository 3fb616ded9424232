# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_cswin/agent-cswin-small_8xb128_in1k.py --launcher pytorch
_base_ = "agent-cswin-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="agent_cswin_small", drop_path_rate=0.4))
