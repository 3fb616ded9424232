# python tools/train.py configs/detection/dinat/mask-rcnn_dinat-tiny_fpn_3x_coco.py
_base_ = "./mask-rcnn_dinat-mini_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="dinat_tiny"))
