# python tools/train.py configs/detection/nat/mask-rcnn_nat-micro_embedded.py
_base_ = "../biformer/mask-rcnn_biformer-micro_embedded.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TimmBackbone",
        model_name="nat_mini",
        norm_outputs=dict(type="layernorm2d", eps=1e-5),
        depths=(1, 1, 2, 1),
        embed_dim=32,
        head_dim=16,
        kernel_size=5,
    ),
)
