# python tools/train.py configs/detection/nat/cascade-mask-rcnn_nat-tiny_fpn_3x_coco.py
_base_ = "./cascade-mask-rcnn_nat-mini_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="nat_tiny", drop_path_rate=0.3))
