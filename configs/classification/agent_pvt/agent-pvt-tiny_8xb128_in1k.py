# torchrun --nproc-per-node=8 tools/train.py \
#     configs/classification/agent_pvt/agent-pvt-tiny_8xb128_in1k.py --launcher pytorch
_base_ = [
    "../_base_/datasets/imagenet_224_squash.py",
    "../_base_/schedules/adamw_300e_float32.py",
    "../_base_/augmentation/mixup_cutmix.py",
    "../../_base_/default_runtime.py",
]
default_scope = "visattn"

model = dict(
    type="ImageClassifier",
    backbone=dict(model_name="agent_pvt_tiny", num_classes=1000, drop_path_rate=0.1),
)
param_scheduler = dict(warmup=5, warmup_lr=2e-6, min_lr=2e-5)
# The last 10 epochs are at the lowest rate.
train_cfg = dict(max_epochs=310)
default_hooks = dict(checkpoint=dict(save_best="accuracy/top1"))
