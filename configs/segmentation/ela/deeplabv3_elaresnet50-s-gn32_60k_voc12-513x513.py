# python tools/train.py configs/segmentation/ela/deeplabv3_elaresnet50-s-gn32_60k_voc12-513x513.py
_base_ = "deeplabv3_elaresnet50-s_60k_voc12-513x513.py"

model = dict(backbone=dict(attn_args=dict(gn_groups=32)))
