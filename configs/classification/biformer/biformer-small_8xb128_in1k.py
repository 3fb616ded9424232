# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/biformer/biformer-small_8xb128_in1k.py --launcher pytorch
_base_ = "biformer-tiny_8xb128_in1k.py"

model = dict(backbone=dict(model_name="biformer_small", drop_path_rate=0.15))
