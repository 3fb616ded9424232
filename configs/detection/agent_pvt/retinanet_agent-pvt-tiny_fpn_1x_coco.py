# python tools/train.py configs/detection/agent_pvt/retinanet_agent-pvt-tiny_fpn_1x_coco.py
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/1x.py",
    "../../_base_/default_runtime.py",
]
default_scope = "mmdet"

# The authors' ImageNet weights: --cfg-options model.backbone.checkpoint=FILE
model = dict(
    backbone=dict(
        model_name="agent_pvt_tiny",
        agent_shapes=((12, 12), (16, 16), (28, 28), (28, 28)),
        drop_path_rate=0.1,
        checkpoint=None,
    ),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4),
)
