# torchrun --nproc-per-node=8 tools/train.py \
#     configs/probing/hiera/hiera-large_linear-ep32_8xb512_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224.py",
    "../_base_/models/linear_ep32_mean.py",
    "../_base_/schedules/lars_90e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    backbone=dict(model_name="hiera_large_224.mae", pretrained=True),
)
default_hooks = dict(checkpoint=dict(save_best="probe/best/top1"))
