# python tools/train.py configs/detection/biformer/mask-rcnn_biformer-base_fpn_1x_coco.py
_base_ = "./mask-rcnn_biformer-small_fpn_1x_coco.py"

model = dict(backbone=dict(model_name="biformer_base", drop_path_rate=0.3))
