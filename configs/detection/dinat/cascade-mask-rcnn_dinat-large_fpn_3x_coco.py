# python tools/train.py configs/detection/dinat/cascade-mask-rcnn_dinat-large_fpn_3x_coco.py
_base_ = "./cascade-mask-rcnn_dinat-mini_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="dinat_large_21k", drop_path_rate=0.6))
# In fp32, as published.
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=7.5e-5, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "norm": dict(decay_mult=0.0),
            "rpb": dict(decay_mult=0.0),
        }
    ),
)
