# torchrun --nproc-per-node=8 tools/train.py \
#     configs/probing/mae/mae-vit-base_lr-grid_8xb512_in1k.py --launcher pytorch
# The learning rates that are searched, each head with each of them.
_base_ = "mae-vit-base_linear-ep32_8xb512_in1k.py"

model = dict(lrs=(0.1, 0.2, 0.5, 0.7, 1.0, 1.2, 1.5))
