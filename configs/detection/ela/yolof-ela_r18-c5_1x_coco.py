# python tools/train.py configs/detection/ela/yolof-ela_r18-c5_1x_coco.py
_base_ = "yolof-ela_r50-c5_1x_coco.py"

model = dict(backbone=dict(depth=18, style="pytorch"))
# The authors' rate is 0.12 / 4 for each image of a step.
auto_scale_lr = dict(base_batch_size=4)
