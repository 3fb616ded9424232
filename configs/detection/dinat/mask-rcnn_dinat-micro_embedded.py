# python tools/train.py configs/detection/dinat/mask-rcnn_dinat-micro_embedded.py
_base_ = "../nat/mask-rcnn_nat-micro_embedded.py"

model = dict(
    backbone=dict(
        model_name="dinat_mini",
        depths=(2, 2, 2, 1),
        dilations=((1, 8), (1, 4), (1, 2), (1,)),
    ),
)
