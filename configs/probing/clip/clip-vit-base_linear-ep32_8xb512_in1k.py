# torchrun --nproc-per-node=8 tools/train.py \
#     configs/probing/clip/clip-vit-base_linear-ep32_8xb512_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224.py",
    "../_base_/models/linear_ep32_all.py",
    "../_base_/schedules/lars_90e.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    backbone=dict(model_name="vit_base_patch16_clip_224.openai", pretrained=True),
    final_norm=True,
)
default_hooks = dict(checkpoint=dict(save_best="probe/best/top1"))
