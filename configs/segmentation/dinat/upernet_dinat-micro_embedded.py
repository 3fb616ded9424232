# python tools/train.py configs/segmentation/dinat/upernet_dinat-micro_embedded.py
_base_ = "../biformer/upernet_biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="dinat_mini",
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        depths=(2, 2, 2, 1),
        embed_dim=32,
        head_dim=16,
        kernel_size=3,
        dilations=((1, 8), (1, 4), (1, 2), (1,)),
    ),
)
