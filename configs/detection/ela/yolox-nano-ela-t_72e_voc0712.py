# python tools/test.py configs/detection/ela/yolox-nano-ela-t_72e_voc0712.py best_epoch_weights.pth
# The network of the released weights, which is not that of the code beside them. Images are
# normalised as in that code.
_base_ = "yolox-nano-ela_72e_voc0712.py"

model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    neck=dict(preset="t"),
)
