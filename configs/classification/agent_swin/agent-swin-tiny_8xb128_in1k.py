# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_swin/agent-swin-tiny_8xb128_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224_squash.py",
    "../_base_/schedules/adamw_300e_float32.py",
    "../_base_/augmentation/mixup_cutmix.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="agent_swin_tiny", num_classes=1000, drop_path_rate=0.2),
)
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
