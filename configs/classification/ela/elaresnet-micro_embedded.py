# python tools/train.py configs/classification/ela/elaresnet-micro_embedded.py
_base_ = "../biformer/biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        model_name="elaresnet18_b",
        num_classes=10,
        layers=(1, 1, 1, 1),
        channels=(32, 64, 128, 256),
        output_stride=8,
    ),
)
