# torchrun --nproc-per-node=8 tools/train.py \
#     configs/segmentation/biformer/semantic-fpn_biformer-base_80k_ade20k-512x512.py \
#     --launcher pytorch
_base_ = "semantic-fpn_biformer-small_80k_ade20k-512x512.py"

model = dict(backbone=dict(model_name="biformer_base", drop_path_rate=0.3))
