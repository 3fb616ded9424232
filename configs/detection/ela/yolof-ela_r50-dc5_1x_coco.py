# python tools/train.py configs/detection/ela/yolof-ela_r50-dc5_1x_coco.py
_base_ = "yolof-ela_r50-c5_1x_coco.py"

# The last stage is dilated instead of strided; anchors are as large as with stride 32.
model = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    bbox_head=dict(anchor_generator=dict(scales=[2, 4, 8, 16, 32])),
)
# The authors' rate is 0.12 / 64 for each image of a step.
auto_scale_lr = dict(base_batch_size=64)
