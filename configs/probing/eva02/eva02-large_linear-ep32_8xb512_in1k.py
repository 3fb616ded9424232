# torchrun --nproc-per-node=8 tools/train.py \
#     configs/probing/eva02/eva02-large_linear-ep32_8xb512_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224.py",
    "../_base_/models/linear_ep32.py",
    "../_base_/schedules/lars_90e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    backbone=dict(model_name="eva02_large_patch14_224.mim_in22k", pretrained=True),
    final_norm=True,
)
default_hooks = dict(checkpoint=dict(save_best="probe/best/top1"))
