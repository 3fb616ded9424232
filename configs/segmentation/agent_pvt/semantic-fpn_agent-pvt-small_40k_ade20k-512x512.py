# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/agent_pvt/semantic-fpn_agent-pvt-small_40k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = "semantic-fpn_agent-pvt-tiny_40k_ade20k-512x512.py"

model = dict(backbone=dict(model_name="agent_pvt_small"))
