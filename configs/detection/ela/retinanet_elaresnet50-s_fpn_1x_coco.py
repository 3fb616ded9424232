# python tools/train.py configs/detection/ela/retinanet_elaresnet50-s_fpn_1x_coco.py
_base_ = [
    "../_base_/models/retinanet_fpn.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/1x.py",
    "../../_base_/default_runtime.py",
]
default_scope = "mmdet"

# ImageNet weights of the network or of a plain ResNet-50:
# --cfg-options model.backbone.checkpoint=FILE
model = dict(
    backbone=dict(
        model_name="elaresnet50_s",
        out_indices=(2, 3, 4),
        frozen_stages=1,
        norm_eval=True,
        checkpoint=None,
    ),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4)
)
