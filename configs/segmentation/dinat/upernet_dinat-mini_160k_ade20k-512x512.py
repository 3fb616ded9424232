# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/dinat/upernet_dinat-mini_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = "../nat/upernet_nat-mini_160k_ade20k-512x512.py"

model = dict(
    backbone=dict(
        model_name="dinat_mini",
        dilations=((1, 16, 1), (1, 4, 1, 8), (1, 2, 1, 3, 1, 4), (1, 2, 1, 2, 1)),
    ),
)
