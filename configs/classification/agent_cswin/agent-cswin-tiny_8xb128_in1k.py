# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_cswin/agent-cswin-tiny_8xb128_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224_squash.py",
    "../_base_/schedules/adamw_300e_float32.py",
    "../_base_/augmentation/mixup_cutmix.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="agent_cswin_tiny", num_classes=1000, drop_path_rate=0.2),
)
param_scheduler = dict(warmup_lr=2e-6, min_lr=2e-5)
# The last 10 epochs are at the lowest rate.
train_cfg = dict(max_epochs=310)
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
custom_hooks = [dict(type="ModelEmaHook", decay=0.99984)]
