# python tools/train.py configs/detection/dinat/cascade-mask-rcnn_dinat-mini_fpn_3x_coco.py
_base_ = "../nat/cascade-mask-rcnn_nat-mini_fpn_3x_coco.py"

# On maps smaller than a window is wide, such as of images below 784 pixels, tokens are padded with
# zeros, as in the releases.
model = dict(
    backbone=dict(
        model_name="dinat_mini",
        dilations=((1, 28), (1, 7, 1, 14), (1, 3, 1, 5, 1, 7), (1, 3)),
        pad_mode="legacy",
    ),
)
