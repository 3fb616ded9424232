# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/dinat/upernet_dinat-small_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = "upernet_dinat-mini_160k_ade20k-512x512.py"

model = dict(backbone=dict(model_name="dinat_small", drop_path_rate=0.5))
