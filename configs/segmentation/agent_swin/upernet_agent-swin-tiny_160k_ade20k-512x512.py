# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/agent_swin/upernet_agent-swin-tiny_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = [
    "../_base_/models/upernet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/160k.py",
]
default_scope = "mmseg"

model = dict(
    backbone=dict(
        model_name="agent_swin_tiny",
        agent_shapes=((9, 9), (12, 12), (14, 14), (7, 7)),
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        drop_path_rate=0.3,
    ),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "norm": dict(decay_mult=0.0),
            "rpb": dict(decay_mult=0.0),
            "key_bias": dict(decay_mult=0.0),
            "query_bias": dict(decay_mult=0.0),
        }
    ),
)
