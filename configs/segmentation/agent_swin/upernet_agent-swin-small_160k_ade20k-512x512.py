# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/agent_swin/upernet_agent-swin-small_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = "upernet_agent-swin-tiny_160k_ade20k-512x512.py"

model = dict(backbone=dict(model_name="agent_swin_small"))
