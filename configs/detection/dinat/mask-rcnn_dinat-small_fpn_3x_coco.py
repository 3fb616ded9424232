# python tools/train.py configs/detection/dinat/mask-rcnn_dinat-small_fpn_3x_coco.py
_base_ = "./mask-rcnn_dinat-mini_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="dinat_small", drop_path_rate=0.35))
