# python tools/train.py configs/detection/ela/mask-rcnn_ela-micro_embedded.py
_base_ = "../biformer/mask-rcnn_biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="elaresnet18_b",
        out_indices=(1, 2, 3, 4),
        layers=(1, 1, 1, 1),
        channels=(32, 64, 128, 256),
    ),
)
