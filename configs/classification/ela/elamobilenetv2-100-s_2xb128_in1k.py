# torchrun --nproc-per-node=2 tools/train.py \
#     configs/classification/ela/elamobilenetv2-100-s_2xb128_in1k.py --launcher pytorch
_base_ = "elamobilenetv2-100-b_2xb128_in1k.py"

model = dict(backbone=dict(model_name="elamobilenetv2_100_s"))
