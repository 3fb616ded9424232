# torchrun --nproc-per-node=8 tools/train.py \
#     configs/probing/mae/mae-vit-base_layers_8xb512_in1k.py --launcher pytorch
# Every layer.
_base_ = "mae-vit-base_linear-ep32_8xb512_in1k.py"

model = dict(layers=tuple(range(12)))
