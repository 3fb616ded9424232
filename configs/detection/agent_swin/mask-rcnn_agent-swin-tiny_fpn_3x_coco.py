# python tools/train.py configs/detection/agent_swin/mask-rcnn_agent-swin-tiny_fpn_3x_coco.py
_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance_multiscale.py",
    "../_base_/schedules/3x.py",
    "../../_base_/default_runtime.py",
]
default_scope = "mmdet"

# The authors' ImageNet weights: --cfg-options model.backbone.checkpoint=FILE
model = dict(
    backbone=dict(
        model_name="agent_swin_tiny",
        agent_shapes=((9, 9), (12, 12), (14, 14), (7, 7)),
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        drop_path_rate=0.1,
        checkpoint=None,
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
