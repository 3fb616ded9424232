# torchrun --nproc-per-node=2 tools/train.py \
#     configs/classification/ela/elaresnet50-l_2xb128_in1k.py --launcher pytorch
_base_ = "elaresnet18-b_2xb128_in1k.py"

model = dict(backbone=dict(model_name="elaresnet50_l"))
