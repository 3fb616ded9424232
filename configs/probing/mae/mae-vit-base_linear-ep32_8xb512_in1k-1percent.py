# python tools/probe.py configs/probing/mae/mae-vit-base_linear-ep32_8xb512_in1k-1percent.py
# One per cent of the labels.
_base_ = [
    "../_base_/datasets/imagenet_224_1percent.py",
    "../_base_/models/linear_ep32.py",
    "../_base_/schedules/lars_90e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(backbone=dict(model_name="vit_base_patch16_224.mae", pretrained=True))
default_hooks = dict(checkpoint=dict(save_best="probe/best/top1"))
