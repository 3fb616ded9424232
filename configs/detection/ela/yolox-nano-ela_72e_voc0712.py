# python tools/train.py configs/detection/ela/yolox-nano-ela_72e_voc0712.py
_base_ = [
    "../_base_/models/yolox-nano.py",
    "../_base_/datasets/voc0712_yolox.py",
    "../_base_/schedules/yolox_72e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "mmdet"

# The authors start from YOLOX-Nano trained on COCO: --cfg-options load_from=FILE load_strict=False
model = dict(
    neck=dict(type="ELAPAFPN", preset="l"),
    bbox_head=dict(num_classes=20),
)
randomness = dict(seed=42)
