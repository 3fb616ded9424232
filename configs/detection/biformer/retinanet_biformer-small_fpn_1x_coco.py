# python tools/train.py configs/detection/biformer/retinanet_biformer-small_fpn_1x_coco.py
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
        model_name="biformer_small",
        n_win=16,
        norm_outputs="layernorm2d",
        norm_eval=True,
        drop_path_rate=0.2,
        checkpoint=None,
    ),
)
optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float16",
    loss_scale=dict(init_scale=512.0),
    optimizer=dict(weight_decay=1e-4),
)
