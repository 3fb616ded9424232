# python tools/train.py configs/segmentation/ela/deeplabv3_elaresnet50-s_60k_voc12-513x513.py
_base_ = [
    "../_base_/models/deeplabv3.py",
    "../_base_/datasets/voc12.py",
    "../_base_/schedules/60k.py",
]
default_scope = "mmseg"

model = dict(backbone=dict(model_name="elaresnet50_s", attn_residual=True, bn_momentum=0.01))
randomness = dict(seed=42)
