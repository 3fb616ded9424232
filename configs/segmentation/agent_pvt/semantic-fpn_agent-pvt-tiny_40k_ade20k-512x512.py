# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/agent_pvt/semantic-fpn_agent-pvt-tiny_40k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/semantic-fpn.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/40k.py",
]
default_scope = "mmseg"

model = dict(
    backbone=dict(
        model_name="agent_pvt_tiny",
        agent_shapes=((12, 12), (16, 16), (28, 28), (28, 28)),
        drop_path_rate=0.1,
    ),
)
