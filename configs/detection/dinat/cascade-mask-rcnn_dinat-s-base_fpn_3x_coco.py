# python tools/train.py configs/detection/dinat/cascade-mask-rcnn_dinat-s-base_fpn_3x_coco.py
_base_ = "./cascade-mask-rcnn_dinat-s-tiny_fpn_3x_coco.py"

model = dict(backbone=dict(model_name="dinat_s_base", drop_path_rate=0.6))
optim_wrapper = dict(optimizer=dict(lr=7.5e-5))
