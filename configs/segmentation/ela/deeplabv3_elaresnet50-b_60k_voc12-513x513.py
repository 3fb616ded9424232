# python tools/train.py configs/segmentation/ela/deeplabv3_elaresnet50-b_60k_voc12-513x513.py
_base_ = "deeplabv3_elaresnet50-s_60k_voc12-513x513.py"

model = dict(backbone=dict(model_name="elaresnet50_b"))
