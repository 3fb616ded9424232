# python tools/train.py configs/detection/nat/cascade-mask-rcnn_nat-base_fpn_3x_coco.py
_base_ = "./cascade-mask-rcnn_nat-mini_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="nat_base", drop_path_rate=0.5))
