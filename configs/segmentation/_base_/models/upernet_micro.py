# UPerNet with narrow heads, for training from scratch on one process. Nine pixels in ten are
# background: at full weight they hide the classes from the first thousand iterations.
_base_ = "upernet.py"

class_weight = [0.1] + [1.0] * 10
norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    decode_head=dict(
        channels=32,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=class_weight),
    ),
    auxiliary_head=dict(
        channels=32,
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=class_weight),
    ),
)
