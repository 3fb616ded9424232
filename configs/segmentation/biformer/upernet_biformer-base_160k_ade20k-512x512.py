# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/biformer/upernet_biformer-base_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = "upernet_biformer-small_160k_ade20k-512x512.py"

model = dict(backbone=dict(model_name="biformer_base", drop_path_rate=0.4))
