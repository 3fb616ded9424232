# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/dinat/upernet_dinat-mini_80k_cityscapes-512x1024.py \
#     --launcher pytorch
# Not in the paper: its recipe for ADE20K with the schedule that is usual on Cityscapes.
_base_ = "../nat/upernet_nat-mini_80k_cityscapes-512x1024.py"

model = dict(
    backbone=dict(
        model_name="dinat_mini",
        dilations=((1, 16, 1), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2, 1, 2, 1)),
    ),
)
