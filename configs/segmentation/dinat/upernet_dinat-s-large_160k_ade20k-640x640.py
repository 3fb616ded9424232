# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/dinat/upernet_dinat-s-large_160k_ade20k-640x640.py \
#     --launcher pytorch
_base_ = "upernet_dinat-large_160k_ade20k-640x640.py"

model = dict(
    backbone=dict(
        model_name="dinat_s_large_21k",
        dilations=(
            (1, 20),
            (1, 10),
            (1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5),
            (1, 2),
        ),
    ),
)
optim_wrapper = dict(type="AutocastOptimWrapper", dtype="float16")
