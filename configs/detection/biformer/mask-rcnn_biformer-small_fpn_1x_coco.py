# python tools/train.py configs/detection/biformer/mask-rcnn_biformer-small_fpn_1x_coco.py
_base_ = [
    "../_base_/models/mask-rcnn_fpn.py",
    "../_base_/datasets/coco_instance.py",
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
    paramwise_cfg=dict(
        custom_keys={
            "norm": dict(decay_mult=0.0),
            # The batch norms between the stages have no norm in the authors' names, and decay.
            "stem.norm1": dict(decay_mult=1.0),
            "stem.norm2": dict(decay_mult=1.0),
            "downsample.norm": dict(decay_mult=1.0),
        }
    ),
)
