# python tools/train.py configs/detection/nat/mask-rcnn_nat-small_fpn_3x_coco.py
_base_ = "./mask-rcnn_nat-mini_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="nat_small", drop_path_rate=0.35))
