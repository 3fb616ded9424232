# python tools/train.py configs/detection/ela/yolof-ela_r50-c5_1x_coco.py
_base_ = [
    "../_base_/models/yolof.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/yolof_1x.py",
    "../../_base_/default_runtime.py",
]
default_scope = "mmdet"

# ImageNet weights of a ResNet in Caffe's style:
# --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
model = dict(
    backbone=dict(init_cfg=dict()),
    neck=dict(type="ELADilatedEncoder", preset="t"),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomShift", prob=0.5, max_shift_px=32),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(batch_size=8, num_workers=8, dataset=dict(pipeline=train_pipeline))
