# python tools/train.py configs/segmentation/ela/upernet_ela-micro_embedded.py
_base_ = "../biformer/upernet_biformer-micro_embedded.py"

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
