# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/nat/upernet_nat-tiny_160k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = "upernet_nat-mini_160k_ade20k-512x512.py"

model = dict(backbone=dict(model_name="nat_tiny", drop_path_rate=0.3))
