# python tools/train.py configs/detection/biformer/retinanet_biformer-base_fpn_1x_coco.py
_base_ = "./retinanet_biformer-small_fpn_1x_coco.py"

model = dict(backbone=dict(model_name="biformer_base", drop_path_rate=0.3))
