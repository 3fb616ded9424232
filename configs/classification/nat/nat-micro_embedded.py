# python tools/train.py configs/classification/nat/nat-micro_embedded.py
_base_ = "../biformer/biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        model_name="dinat_mini",
        num_classes=10,
        depths=(1, 2, 1),
        embed_dim=32,
        head_dim=16,
        kernel_size=3,
        dilations=((1,), (1, 2), (1,)),
        drop_path_rate=0.05,
    ),
)
