# python tools/train.py configs/detection/ela/yolox-nano-ela_72e_coco.py
_base_ = [
    "../_base_/models/yolox-nano.py",
    "../_base_/datasets/coco_yolox.py",
    "../_base_/schedules/yolox_72e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "mmdet"

model = dict(neck=dict(type="ELAPAFPN", preset="l"))
randomness = dict(seed=42)
